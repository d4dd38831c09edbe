"""The numbers of an explanation as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _


def numbers() -> dict[str, tuple[str, str]]:
    """Name and format of the measurements that have a name of their own; others go by the record's."""
    return {
        "score_unperturbed": (_("Score of the undisturbed network"), "{:.3f}"),
        "target_volume_ml": (_("Volume of the target"), "{:.1f} ml"),
        "largest_score_lost": (_("Largest score lost"), "{:.4f}"),
        "smallest_score_lost": (_("Smallest score lost (below 0: hiding helped)"), "{:.4f}"),
        "effect_inside_target": (_("Share of the effect inside the target"), "{:.1%}"),
        "effect_inside_target_if_uniform": (_("The same share, were the map uniform"), "{:.1%}"),
        "probed_volume_ml": (_("Volume that was tried"), "{:.0f} ml"),
        "perturbations": (_("Perturbations computed"), "{:.0f}"),
        "perturbations_planned": (_("Perturbations planned"), "{:.0f}"),
        "patches_computed": (_("Network patches computed"), "{:.0f}"),
        "patches_full_inference_would_compute": (_("Patches that full inference would compute"), "{:.0f}"),
    }


def measurementsTable(name: str, record: Mapping[str, Any]) -> Any:
    """What was measured, one row each: name and value, both ready to be read."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", _("{name} measurements").format(name=name))
    _fill(node, [(_("Measurement"), [n for n, _v in rows(record)]), (_("Value"), [v for _n, v in rows(record)])])
    return node


def rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The measurements of a record, as a person reads them."""
    found = [
        (_("Structure"), str(record["target"]["name"])),
        (_("Region from"), str(record["region"]["source"])),
        (_("Share of the body in the region"), _percent(record["region"].get("share_of_body"))),
    ]
    agreement = record["region"].get("agreement_with_prediction") or {}
    if agreement.get("dice") is not None:
        found.append((_("Overlap of region and prediction (Dice)"), f"{agreement['dice']:.2f}"))
    named = numbers()
    for key, value in record["measurements"].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            title, form = named.get(key, (key.replace("_", " "), "{:g}"))
            found.append((title, form.format(value)))
    return found


def structureRows(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The structures that a method weighed, most important first; empty for methods that weigh places."""
    rows = record["measurements"].get("structures")
    return [row for row in rows if _isWeighed(row)] if isinstance(rows, list) else []


def _isWeighed(row: Any) -> bool:
    """Whether a record of elsewhere has numbers where there should be some."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("score_lost"), (int, float))
        and all(isinstance(row.get(key) or 0, (int, float)) for key in ("volume_ml", "share"))
    )


def structuresTable(name: str, structures: Iterable[Mapping[str, Any]]) -> Any:
    """How much the target leans on each structure, one row each: volume in ml, score lost, share of all lost."""
    structures = list(structures)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", _("{name} structures").format(name=name))
    _fill(
        node,
        [
            (_("Structure"), [str(row["structure"]) for row in structures]),
            (_("Volume (ml)"), [float(row.get("volume_ml") or 0) for row in structures]),
            (_("Score lost"), [float(row["score_lost"]) for row in structures]),
            (_("Share"), [float(row.get("share") or 0) for row in structures]),
        ],
    )
    return node


def _fill(tableNode: Any, columns: Iterable[tuple[str, list[Any]]]) -> None:
    """Fill a table with columns of text or of numbers."""
    table = vtk.vtkTable()
    for title, values in columns:
        column = vtk.vtkStringArray() if values and isinstance(values[0], str) else vtk.vtkDoubleArray()
        column.SetName(title)
        for value in values:
            column.InsertNextValue(value)
        table.AddColumn(column)
    tableNode.SetAndObserveTable(table)
    tableNode.SetUseColumnTitleAsColumnHeader(True)
    tableNode.SetLocked(True)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
