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
        "credit_of_organ": (_("Credit of the structure itself"), "{:.3f}"),
        "credit_of_context": (_("Credit of what lies around it"), "{:.3f}"),
        "organ_alone": (_("Score with nothing but the structure shown"), "{:.3f}"),
        "context_alone": (_("Score with all but the structure shown"), "{:.3f}"),
        "score_change": (_("Score that is shared out"), "{:.3f}"),
        "completeness_gap": (_("What the gradients miss of it"), "{:.3f}"),
        "completeness_gap_scaled": (_("What the map misses of it"), "{:.3f}"),
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
    if isCredited(record):
        named["largest_score_lost"] = (_("Largest credit of a place"), "{:.4f}")
        named["smallest_score_lost"] = (_("Smallest credit of a place (below 0: it works against)"), "{:.4f}")
    for key, value in record["measurements"].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            title, form = named.get(key, (key.replace("_", " "), "{:g}"))
            found.append((title, form.format(value)))
    return [*found, *_regionRows(record)]


def _regionRows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How little of the scan is enough, and how little is necessary, where the map was checked."""
    regions = record.get("key_regions")
    named = {
        "sufficient": _("Enough of the scan for the structure, in the order of {order}"),
        "necessary": _("Half of the score is lost without, in the order of {order}"),
    }
    orders = {"map": _("the map"), "outline": _("the outline")}
    found = []
    for kind, title in named.items():
        by = regions.get(kind) if isinstance(regions, dict) else None
        for order, word in orders.items():
            region = by.get(order) if isinstance(by, dict) else None
            volume = region.get("volume_ml") if isinstance(region, dict) else None
            if isinstance(volume, (int, float)):
                found.append((title.format(order=word), f"{volume:.0f} ml"))
    return found


def structureRows(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The structures that a method weighed, most important first; empty for methods that weigh places.

    Of those that were credited and not removed, the credit stands as ``score_lost``.
    """
    rows = record["measurements"].get("structures")
    if isCredited(record):
        credits = record["measurements"]["context_credits"]
        rows = [{**row, "score_lost": row.get("credit")} for row in credits if isinstance(row, dict)]
    return [row for row in rows if _isWeighed(row)] if isinstance(rows, list) else []


def isCredited(record: Mapping[str, Any]) -> bool:
    """Whether the structures around the target were credited, and not removed."""
    return isinstance(record["measurements"].get("context_credits"), list)


def structureHeader(record: Mapping[str, Any]) -> list[str]:
    """What the structures and their numbers are."""
    if isCredited(record):
        return [_("What lies around it"), _("Credit")]
    return [_("Structure that was removed"), _("Score lost")]


def _isWeighed(row: Any) -> bool:
    """Whether a record of elsewhere has numbers where there should be some."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("score_lost"), (int, float))
        and all(isinstance(row.get(key) or 0, (int, float)) for key in ("volume_ml", "share"))
    )


def structuresTable(name: str, structures: Iterable[Mapping[str, Any]], value: str | None = None) -> Any:
    """How much the target leans on each structure, one row each: volume in ml, score lost, share of all lost.

    ``value`` is what the numbers are where they are not the score lost.
    """
    structures = list(structures)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", _("{name} structures").format(name=name))
    _fill(
        node,
        [
            (_("Structure"), [str(row["structure"]) for row in structures]),
            (_("Volume (ml)"), [float(row.get("volume_ml") or 0) for row in structures]),
            (value or _("Score lost"), [float(row["score_lost"]) for row in structures]),
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
