"""One map of the experiment, measured: a row of its table, and a file that outlives an interruption."""

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
    """What one explanation cost, and what its map is worth. Nothing in it names a patient.

    Attributes
    ----------
    case
        Number of the case in its dataset, from 1.
    structure, method, region
        What was explained, how, and where perturbations were made.
    region_source
        What the region really was: ``prediction box`` where the localizer's was no use.
    explain_s
        Seconds of perturbing (the preparation of the network's patches of the target included).
    total_s
        Seconds of segmenting, of finding the region where there is one, as if it were the first in this scan, and of
        perturbing. To load models and read files is the same for all and left out.
    perturbations, patches
        Tried, and network patches computed for them.
    score
        Of the undisturbed network.
    dice, iou
        The paper's: of the map thresholded at half its maximum, within the region, with the expert's label.
    null
        Which map without any knowledge overlaps the organ best (by Dice) when it is cut to the same region.
    null_dice, null_iou
        Its overlap.
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
        What the seconds were measured on.
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
        """Dice above the best null map's; at or below 0 the overlap is the region's merit."""
        return self.dice - self.null_dice

    @property
    def faithfulness(self) -> float:
        """Area of insertion less area of deletion, -1 to 1; high is good."""
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
        found: Any = json.loads(text)
        return _checked(found), str(found["settings_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name} is damaged: delete it, and it is measured again.") from error


def _checked(found: Mapping[str, Any]) -> MapMeasurements:
    """A row of the types that it has; raises where one is missing or another."""
    hints = get_type_hints(MapMeasurements)
    values: dict[str, Any] = {}
    for column in COLUMNS:
        value = found[column]
        wanted = (int, float) if hints[column] is float else int if hints[column] is int else str
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise TypeError(column)
        values[column] = float(value) if hints[column] is float else value
    if values["region"] not in REGIONS:
        raise ValueError(values["region"])
    return MapMeasurements(**values)
