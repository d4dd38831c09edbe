"""The measurements of one map of the experiment: a row of the table, saved in a file of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from XAICLIPLib.errors import InputError

RegionName = Literal["guided", "whole"]
REGIONS: tuple[RegionName, ...] = get_args(RegionName)
"""With the localizer's region, and unguided: over the whole scan."""


@dataclass(frozen=True)
class MapMeasurements:
    """The cost of one explanation, and the quality of its map. Nothing in it identifies a patient.

    Attributes
    ----------
    case
        Number of the case in its dataset, from 1.
    structure, method, region
        The explained structure, the method, and the region that was perturbed.
    region_source
        The region that was really used: ``prediction box`` if the localizer's was of no use.
    explain_s
        Seconds of perturbing, including the preparation of the network's patches of the target.
    total_s
        Seconds of segmenting, of finding the region (of a guided map; as if it were the first prompt in this scan),
        and of perturbing. Loading models and reading files takes equally long for all maps, and is left out.
    perturbations, patches
        Number of perturbations, and of network patches computed for them.
    score
        Of the unperturbed scan.
    dice, iou
        As in the paper: overlap of the map, thresholded at half its maximum within the region, with the expert's label.
    null
        Name of the control map that overlaps the organ best (by Dice) when it is cut to the same region.
    null_dice, null_iou
        The overlap of that control map.
    deletion, insertion
        Areas under the curves on soft Dice: deletion low is good, insertion high.
    random_deletion, random_insertion
        The same for random orders.
    pointing, pointing_chance
        Whether the maximum lies in the organ, and for a random voxel.
    mass, mass_chance
        Share of the positive values inside the organ, and for an even map.
    outside, outside_chance
        Share of the absolute effect that lies outside the guided region, whatever region the map was made for, and
        for an even map.
    machine
        The machine that the seconds were measured on.
    """

    case: int
    structure: str
    method: str
    region: RegionName
    region_source: str
    explain_s: float
    total_s: float
    perturbations: int
    patches: int
    score: float
    dice: float
    iou: float
    null: str
    null_dice: float
    null_iou: float
    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float
    pointing: float
    pointing_chance: float
    mass: float
    mass_chance: float
    outside: float
    outside_chance: float
    machine: str

    @property
    def lead(self) -> float:
        """Dice minus that of the best control map; at or below 0 the overlap comes from the region alone."""
        return self.dice - self.null_dice

    @property
    def faithfulness(self) -> float:
        """Area of insertion minus area of deletion, -1 to 1; high is good."""
        return self.insertion - self.deletion

    @property
    def random_faithfulness(self) -> float:
        """The same for random orders."""
        return self.random_insertion - self.random_deletion


COLUMNS = tuple(f.name for f in fields(MapMeasurements))
"""Of the table, in order."""


def to_text(row: MapMeasurements, settings: str) -> str:
    """A row as JSON, with the checksum of the settings under which it was measured."""
    return json.dumps({"settings_sha256": settings, **asdict(row)}, indent=1, allow_nan=False) + "\n"


def from_text(text: str, name: str) -> tuple[MapMeasurements, str]:
    """A row and the checksum of its settings.

    Raises
    ------
    InputError
        The text is damaged, or of another version; ``name`` is the file's.
    """
    try:
        content: Any = json.loads(text)
        return _checked_row(content), str(content["settings_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name} is damaged: delete it, and it is measured again.") from error


def _checked_row(content: Mapping[str, Any]) -> MapMeasurements:
    """A row of the table; raises an error if a value is missing or has a wrong type."""
    hints = get_type_hints(MapMeasurements)
    values: dict[str, Any] = {}
    for column in COLUMNS:
        value = content[column]
        expected = (int, float) if hints[column] is float else int if hints[column] is int else str
        if isinstance(value, bool) or not isinstance(value, expected):
            raise TypeError(column)
        values[column] = float(value) if hints[column] is float else value
    if values["region"] not in REGIONS:
        raise ValueError(values["region"])
    return MapMeasurements(**values)
