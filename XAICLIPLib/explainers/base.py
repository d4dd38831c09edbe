"""What the methods have in common: how each is declared, what it asks of a scorer, and what it yields on the way.

A method is one file: a frozen dataclass derived from `Method`, whose fields are its parameters, and the function of
tensors that does the work. Nothing here needs PyTorch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from XAICLIPLib.explainers.setting import Setting
    from XAICLIPLib.scoring.perturbation import Perturbation

SMALLEST_MM, LARGEST_MM = 16.0, 48.0
"""Bounds of the size that `size_for` chooses."""

Own = TypeVar("Own", bound="Method")


@dataclass(frozen=True)
class Captions:
    """How the results of a method read.

    Attributes
    ----------
    counted
        What the perturbations, or steps, of the method are called.
    value
        What a voxel's value is, to follow "score lost". Empty where nothing is hidden, as in methods by gradients: then
        no text speaks of hiding, of the region, or of what was not tried.
    label
        Of the colours, with ``{score}`` for the score.
    region
        Of the region's outline.
    pieces
        Whether a whole piece has one value, so that nothing lies between those of two neighbours.
    """

    counted: str
    value: str
    label: str = "score lost ({score})"
    region: str = "Region of interest (tried, with what the hidden parts at its edge cover)"
    pieces: bool = False

    def of_colours(self, score: str, effect: str = "total") -> str:
        """What the colours are, of a score and the part of it that is shown."""
        words = {"remote": "score lost elsewhere", "local": "score lost there", "total": "score lost"}
        label = self.label.format(score=score.replace("dice", "Dice"))
        return label.replace(words["total"], words.get(effect, words["total"]), 1)


class Method(ABC):
    """A method that a user can name, with its parameters: a frozen dataclass of `XAICLIPLib.explainers.parameters`.

    The first paragraph of its docstring is its summary for the user, and ends with a full stop.

    Attributes
    ----------
    name
        As the user names it.
    captions
        How its results read.
    """

    name: ClassVar[str]
    captions: ClassVar[Captions]

    @abstractmethod
    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        """Explain, with an estimate after every batch; the last one is complete. Close the iterator to cancel.

        Raises
        ------
        InputError
            The method cannot work on this network.
        """

    def check(self) -> None:  # noqa: B027 -- most methods have nothing to check
        """Refuse parameters that contradict each other.

        Raises
        ------
        InputError
            They do.
        """

    def sized_for(self: Own, volume_ml: float) -> Own:
        """The method with the sizes that were left open chosen by the volume of the structure that is explained.

        Raises
        ------
        InputError
            A size that was given does not go with one that is chosen.
        """
        return self

    @property
    def reach_mm(self) -> float:
        """How far beyond a place its effect may be booked: half the edge of what is hidden at once, in mm."""
        return 0.0

    def cautions(self, spacing_mm: Sequence[float]) -> list[str]:
        """What a reader must know of how a method whose sizes are chosen is carried out on voxels of this size."""
        return []

    def in_words(self, findings: Mapping[str, Any] = MappingProxyType({})) -> str:
        """The method and what it was told, in a few words for a caption; sizes as they were used, by the findings."""
        words = [self.name]
        for field in fields(self):  # type: ignore[arg-type] # every method is a dataclass
            words += _in_words(field, getattr(self, field.name), findings.get(f"{field.name}_used"))
        return ", ".join(words)


def _in_words(field: Field[Any], value: Any, used_mm: Sequence[float] | None) -> list[str]:
    """A parameter in words; none where it has its default, save for a length."""
    name = field.name.removesuffix("_mm").replace("_", " ")
    if isinstance(value, bool):
        return [name] if value else []
    if value is None or (value == field.default and not field.name.endswith("_mm")):
        return []
    unit = f" {field.metadata['unit']}" if field.metadata["unit"] else ""
    if used_mm is not None and any(abs(length - value) > 0.05 * value for length in used_mm):
        return [f"{name} {by(used_mm)}{unit} (asked: {value:g})"]
    return [f"{name} {value:g}{unit}" if isinstance(value, (int, float)) else f"{name} {value}"]


class Scores(Protocol):
    """What an explainer needs to know of a scorer (`XAICLIPLib.scoring.scorer.Scorer`)."""

    def touched(self, perturbation: Perturbation) -> Sequence[int]:
        """The network calls that a perturbation costs, by their numbers; none where it provably loses nothing."""
        ...

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        """Lists of (number of the perturbation, score that it costs), in batches.

        The perturbations are drawn one by one as they are needed, so that a generator may decide late.
        """
        ...


class RunningMap(ABC):
    """What an explainer makes of the scores so far; it goes on changing with them."""

    @abstractmethod
    def saliency(self) -> Tensor:
        """(X, Y, Z), float32, on the segmenter's grid and the CPU: the score lost because of each voxel.

        0 where nothing was perturbed.
        """

    @abstractmethod
    def probed(self) -> Tensor:
        """(X, Y, Z), bool: where the saliency is known."""

    def measured(self) -> Tensor:
        """(X, Y, Z), float32: as `saliency`, without guesses that are good to look at and no result yet."""
        return self.saliency()

    def standard_error(self) -> Tensor | None:
        """(X, Y, Z), float32: of the saliency, where the method is random and enough is known; None elsewhere."""
        return None

    def findings(self) -> dict[str, Any]:
        """Further numbers for the record, JSON types only: how well a model fits, what was skipped."""
        return {}


@dataclass(frozen=True)
class Estimate:
    """What an explainer knows so far.

    Attributes
    ----------
    done, planned
        Perturbations evaluated so far, and in all as far as is known.
    map
        What they say. It changes with the next step: ask it before.
    """

    done: int
    planned: int
    map: RunningMap

    def saliency(self) -> Tensor:
        """See `RunningMap.saliency`."""
        return self.map.saliency()

    def probed(self) -> Tensor:
        """See `RunningMap.probed`."""
        return self.map.probed()

    def measured(self) -> Tensor:
        """See `RunningMap.measured`."""
        return self.map.measured()

    def standard_error(self) -> Tensor | None:
        """See `RunningMap.standard_error`."""
        return self.map.standard_error()

    def findings(self) -> dict[str, Any]:
        """See `RunningMap.findings`."""
        return self.map.findings()


def final(estimates: Iterable[Estimate]) -> Estimate:
    """Run an explainer to its end.

    Raises
    ------
    ValueError
        It yields nothing, which no explainer here does.
    """
    (last,) = deque(estimates, maxlen=1)
    return last


def size_for(volume_ml: float) -> float:
    """Edge in mm of what is hidden at once for a structure of this volume: half the edge of a cube of as much.

    Within bounds: about 48 mm for a liver and 28 mm for a kidney, which takes as many windows for the one as for the
    other.
    """
    return round(min(max(0.5 * (1000 * volume_ml) ** (1 / 3), SMALLEST_MM), LARGEST_MM), 1)


def in_voxels(size_mm: float, spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """A length in mm as whole voxels along each axis, at least one."""
    return tuple(max(1, round(size_mm / s)) for s in spacing_mm)


def in_mm(size: Sequence[int], spacing_mm: Sequence[float]) -> list[float]:
    """Whole voxels along each axis in mm."""
    return [round(n * s, 2) for n, s in zip(size, spacing_mm, strict=True)]


def by(lengths: Sequence[float]) -> str:
    """Lengths along three axes, or the one that they share."""
    words = [f"{length:.3g}" for length in lengths]
    return words[0] if len(set(words)) == 1 else " × ".join(words)
