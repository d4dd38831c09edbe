"""What a change of the input costs the target: exact incremental sliding-window inference.

With blending weights w the logit of a sliding-window network at voxel v is the weighted mean of f(x_p)(v) over the
patches p that hold v. A score over the voxels T needs only the patches that meet T; a perturbation of the voxels S
changes only the patches that meet S. So only patches that meet both are computed again, every other one is cached.
No assumption about the network is made: each patch is recomputed whole.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor

from XAICLIPLib.errors import OTHER_TARGET, InputError
from XAICLIPLib.imaging.boxes import Box, bounds, intersect, shift
from XAICLIPLib.scoring.baselines import Fill
from XAICLIPLib.scoring.effect import Effect
from XAICLIPLib.scoring.options import Part, Precision, Score
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scores import score_of, share_of, target_score, voxel_values
from XAICLIPLib.scoring.target import Target
from XAICLIPLib.segmentation.backpropagation import PATCHES_AT_ONCE, vector_jacobian_product
from XAICLIPLib.segmentation.batching import Batches
from XAICLIPLib.segmentation.segmenter import Activation
from XAICLIPLib.segmentation.sliding_window import Tiling
from XAICLIPLib.system.memory import total_memory

KEPT_BYTES, KEPT_SHARE = 2**30, 1 / 24
"""Of unperturbed logits this much is kept at least, and this share of the memory. With a hundred classes and half
overlapping patches a target of one litre has 1 GB: each of its voxels lies in eight patches."""

INDEX_BYTES = 2**28
"""Most that is kept of where the rows of several patches stand among one another."""

VALUES_AT_ONCE = 2**25
"""So many logits become values at once: a softmax copies them."""

PRECISION_ERROR = 0.01
"""Half precision is used where it gets the score lost by hiding the target right to this share."""


@dataclass
class _Patch:
    """A patch that meets the target: where, and what it says there unperturbed."""

    box: Box
    inside: Tensor  # its target voxels, as indices into the flattened patch
    rows: Tensor  # the same voxels as rows of the target
    weight: Tensor  # blending weight over total weight of each of those voxels

    def read(self, logits: Tensor) -> Tensor:
        """Its target voxels, (K, n), of the patch's logits (K, *size)."""
        return logits.flatten(1).index_select(1, self.inside)


class _Kept:
    """What patches say unperturbed, as much of it as may be kept; the others are to be computed again when they count.

    Which to forget is drawn, from a fixed seed: a pattern over the whole volume comes by all patches in turn, and of
    those that were not asked for longest not one would be there when its turn comes.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes, self._draw = most_bytes, 0, random.Random(0)
        self._logits: dict[int, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor | None:
        return self._logits.get(number)

    def add(self, number: int, logits: Tensor) -> None:
        size = logits.numel() * logits.element_size()
        if size > self._most_bytes or number in self._logits:
            return
        while self._bytes + size > self._most_bytes:
            forgotten = self._logits.pop(self._draw.choice(list(self._logits)))
            self._bytes -= forgotten.numel() * forgotten.element_size()
        self._logits[number] = logits
        self._bytes += size


@dataclass(frozen=True)
class _Unperturbed:
    """A score before anything is perturbed."""

    values: Tensor  # (n), of the target's voxels
    inside: Tensor  # their sum over the reference
    total: Tensor  # and over all
    score: float


@dataclass
class _Pending:
    """A perturbation whose patches are under way."""

    index: int
    perturbation: Perturbation
    patches: tuple[int, ...]
    box: Box  # of the content, in the volume's indices
    content: Tensor | None = None  # what the perturbed voxels hold, made once for all patches
    done: int = 0  # patches
    logits: Tensor | None = None  # (K, rows) of the target's voxels that its patches hold, with the changes so far


@dataclass
class Scorer:
    """Scores perturbations of one volume for one target.

    Parameters
    ----------
    forward
        The network: patches (N, C, *size) to logits (N, K, *size).
    volume
        (C, X, Y, Z), the unperturbed input, on the device where the network runs.
    baseline
        What replaces perturbed voxels: (C, X, Y, Z), or a function that makes it for each perturbation.
    tiling
        The network's patches over the volume.
    target
        What is scored.
    activation
        How logits become probabilities.
    kind
        The score.
    batch_size
        Patches computed together, of whatever perturbations; None chooses (see `Batches`). Halved when memory runs out.
    precision
        ``reduced`` runs perturbed patches in half precision if that gets the score lost by hiding the whole target
        right to 1%; ``auto`` does so on a CUDA GPU alone.
    part
        What of the score lost `lost` tells: of ``remote``, for one, a hidden organ gets nothing for its own removal.
    channels
        K, where it is known before the network has run (see `Batches`).
    kept_bytes
        How much of the patches' unperturbed logits is kept; the rest is computed again when it counts. None takes
        `KEPT_SHARE` of the memory of the device, and at least `KEPT_BYTES`.

    Attributes
    ----------
    full_score
        Score of the unperturbed volume, in full precision.
    reduced
        Whether perturbed patches are run in half precision; known once a perturbation was scored.
    forwards
        Patches computed for perturbations so far (without the target's own).
    warnings
        What had to be changed to go on, in words.

    Raises
    ------
    InputError
        No voxel of the target belongs to its reference.
    """

    forward: Callable[[Tensor], Tensor]
    volume: Tensor
    baseline: Tensor | Fill
    tiling: Tiling
    target: Target
    activation: Activation = "softmax"
    kind: Score = "soft dice"
    batch_size: int | None = None
    precision: Precision = "full"
    part: Part = "total"
    channels: int | None = None
    kept_bytes: int | None = None
    full_score: float = field(init=False)
    reduced: bool = field(init=False, default=False)
    forwards: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        device = self.volume.device
        voxels = self.target.voxels.to(device)
        self._reference = self.target.reference.to(device)[voxels]
        self._voxels = voxels.nonzero(as_tuple=True)
        if not bool(self._reference.any()):
            raise InputError(
                f"The network finds no {self.target.name} in this volume, so there is nothing to explain: "
                f"{OTHER_TARGET}.",
                OTHER_TARGET,
            )
        label = (self.target.label,) if isinstance(self.target.label, int) else tuple(self.target.label)
        # Overlapping classes do not know of one another: of a hundred only the target's own count.
        self._channels = list(label) if self.activation == "sigmoid" else None
        self._label = label if self._channels is None else tuple(range(len(label)))
        self._volume = self.tiling.pad(self.volume)
        self._batches = Batches(self.forward, device, self.batch_size, channels=self.channels)
        self._patches = self._target_patches(voxels)
        self._useful = self._bounds()
        patches = self._patches  # not self, which the cache would keep alive with all its tensors
        largest = sum(16 * len(patch.rows) for patch in patches)  # of one entry
        self._union = lru_cache(maxsize=max(2, min(16, INDEX_BYTES // largest)))(
            lambda numbers: union_of_rows({n: patches[n].rows for n in numbers})
        )
        self._kept = _Kept(self._most_kept())
        self._logits = self._blended(self._volume, self._batches, self._kept)
        self._size = int(self._reference.sum())
        self._unperturbed: dict[Score, _Unperturbed] = {}
        self.full_score = self.full_score_by(self.kind)
        if not math.isfinite(self.full_score):
            raise InputError(
                "The network's output is not finite on this volume, so that it cannot be scored: check that its "
                "weights and its preprocessing belong together."
            )
        # Found out with the first perturbations: gradients are taken in full precision and need not pay for it.
        self._undecided = self.precision == "reduced" or (self.precision == "auto" and device.type == "cuda")

    @property
    def _exact(self) -> torch.dtype:
        """For sums over a hundred thousand voxels; Apple's GPUs have no double precision."""
        return torch.float32 if self.volume.device.type == "mps" else torch.float64

    @property
    def warnings(self) -> list[str]:
        """What had to be changed to go on, in words."""
        return self._batches.warnings

    @property
    def batch_in_use(self) -> int:
        """Patches that are computed together now."""
        return self._batches.size_for(self._volume[(slice(None), *self._patches[0].box)])

    @property
    def patches_of_target(self) -> int:
        """How many of the network's patches meet the target: what a perturbation of everything costs."""
        return len(self._patches)

    @property
    def sees(self) -> Box:
        """The box, in the volume's indices, beyond which nothing matters: all that the target's patches see."""
        return self._useful

    def touched(self, perturbation: Perturbation) -> list[int]:
        """Which of the target's patches a perturbation changes: what its evaluation costs."""
        return [n for n, patch in enumerate(self._patches) if self.tiling.meets(patch.box, perturbation.box)]

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        """Score lost by each perturbation, or the ``part`` of it, exactly as full inference would give it.

        Yields lists of (number of the perturbation, score lost), one list per network batch; a perturbation that meets
        no patch of the target loses nothing and costs nothing. The perturbations are drawn as they are needed. Close
        the iterator to cancel.
        """
        if self.part != "total":
            for effects in self.effects(perturbations):
                yield [(index, getattr(effect, self.part)) for index, effect in effects]
            return
        for batch in self.lost_by(perturbations, (self.kind,)):
            yield [(index, values[0]) for index, values in batch]

    def full_score_by(self, kind: Score) -> float:
        """Score of the unperturbed volume, of any kind."""
        return self._before(kind).score

    def lost_by(
        self, perturbations: Iterable[Perturbation], kinds: Sequence[Score]
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """As `lost`, by several scores from the same network calls: in the place of each number one for each kind."""
        yield from self._finished(perturbations, lambda pending: self._losses(pending, kinds), len(kinds))

    def effects(
        self, perturbations: Iterable[Perturbation], groups: Tensor | None = None
    ) -> Iterator[list[tuple[int, Effect]]]:
        """As `lost`, from the same network calls, split by where the loss lands.

        Parameters
        ----------
        perturbations
            As in `lost`.
        groups
            (X, Y, Z) whole numbers from 0: by these the loss is told apart in ``landed``.
        """
        numbers = None if groups is None else groups.to(self._reference.device)[self._voxels].long()
        count = 0 if groups is None else int(groups.max()) + 1

        def finish(pending: _Pending) -> Tensor:
            return self._effect(pending, numbers, count)

        for batch in self._finished(perturbations, finish, 3 + count):
            yield [(n, Effect(total, local, added, tuple(landed))) for n, (total, local, added, *landed) in batch]

    def _finished(
        self, perturbations: Iterable[Perturbation], finish: Callable[[_Pending], Tensor], size: int
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """Run the perturbations, and yield what ``finish`` makes of each: a tensor of ``size`` numbers."""
        if self._undecided:
            self._undecided = False
            self._try_reduced()
        nothing = (0.0,) * size
        queue: list[tuple[_Pending, int]] = []
        ready: list[tuple[int, Tensor | tuple[float, ...]]] = []
        for index, perturbation in enumerate(perturbations):
            touched = tuple(self.touched(perturbation))
            box = intersect(perturbation.box, self._useful)
            if not touched or box is None:
                ready.append((index, nothing))
                continue
            pending = _Pending(index, perturbation, touched, box)
            queue.extend((pending, patch) for patch in touched)
            while len(queue) >= (batch := self.batch_in_use):
                ready += self._advance(queue[:batch], finish)
                del queue[:batch]
                yield self._collect(ready)
        while queue:
            batch = self.batch_in_use
            ready += self._advance(queue[:batch], finish)
            del queue[:batch]
            yield self._collect(ready)
        if ready:
            yield self._collect(ready)

    @torch.inference_mode()
    def answers(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the network says of the patch with most of the target, not counted among ``forwards``.

        Returns
        -------
        tuple
            (K, n) logits of the patch alone; of the same patch in a batch; and with the reference hidden in it, or None
            where that changes nothing of the patch.
        """
        number, patch = max(enumerate(self._patches), key=lambda item: len(item[1].rows))
        hidden = Perturbation(bounds(self.target.reference))
        box = intersect(hidden.box, self._useful)
        shown = self._volume[(slice(None), *patch.box)]
        other = shown if box is None else self._perturbed(patch.box, _Pending(0, hidden, (number,), box))
        once, again, without = (
            patch.read(logits) for part in ([shown], [shown, other]) for logits in self._batches.run(part)
        )
        return once, again, None if torch.equal(shown, other) else without

    # --- the target's patches ---------------------------------------------------------------------

    def _target_patches(self, voxels: Tensor) -> list[_Patch]:
        """Find the patches that meet the target (X, Y, Z)."""
        # Rows are numbered within the target's box: of a whole body their numbers would take more than its scan.
        core = bounds(voxels)
        numbers = torch.full([side.stop - side.start for side in core], -1, dtype=torch.int32, device=voxels.device)
        numbers[voxels[core]] = torch.arange(len(self._reference), dtype=torch.int32, device=voxels.device)
        core = shift(core, self.tiling.offset)
        weight = self.tiling.weight.to(voxels.device)
        total = torch.zeros(len(self._reference), device=voxels.device)
        patches: list[_Patch] = []
        for box in self.tiling.patches:
            common = intersect(box, core)
            if common is None:
                continue
            local = torch.full(weight.shape, -1, dtype=torch.int32, device=voxels.device)
            local[shift(common, [-side.start for side in box])] = numbers[shift(common, [-side.start for side in core])]
            local = local.flatten()
            inside = torch.nonzero(local >= 0).flatten()
            if len(inside) == 0:
                continue
            rows = local[inside].long()
            total[rows] += weight.flatten()[inside]
            patches.append(_Patch(box, inside, rows, weight.flatten()[inside]))
        for patch in patches:
            patch.weight = patch.weight / total[patch.rows]
        return patches

    def _most_kept(self) -> int:
        device = self.volume.device
        total = total_memory(device if device.type == "cuda" else None) or 0
        return max(KEPT_BYTES, int(KEPT_SHARE * total)) if self.kept_bytes is None else self.kept_bytes

    @torch.inference_mode()
    def _blended(self, padded: Tensor, batches: Batches, kept: _Kept | None = None) -> Tensor:
        """Logits (K, n) of the target's voxels in a padded volume; what its patches say goes to ``kept``."""
        blended: Tensor | None = None
        for number, logits in self._read(range(len(self._patches)), padded, batches):
            if blended is None:
                blended = torch.zeros((len(logits), len(self._reference)), device=padded.device)
            blended[:, self._patches[number].rows] += logits * self._patches[number].weight
            if kept is not None:
                kept.add(number, logits)
        assert blended is not None  # every voxel lies in a patch
        return blended

    def _read(self, numbers: Sequence[int], padded: Tensor, batches: Batches) -> Iterator[tuple[int, Tensor]]:
        """The logits of the target's voxels (K, n) in some patches, by their numbers; all at once fill the memory."""
        done = 0
        while done < len(numbers):
            boxes = [self._patches[number].box for number in numbers[done:]]
            size = batches.size_for(padded[(slice(None), *boxes[0])])  # it may shrink on the way
            output = batches.run([padded[(slice(None), *box)] for box in boxes[:size]])
            self._classes = output.shape[1]
            for number, logits in zip(numbers[done : done + size], output, strict=True):
                yield number, self._patches[number].read(self._of_interest(logits))
            done += size

    def _of_interest(self, logits: Tensor) -> Tensor:
        """Of logits (K, ...) the channels that the scores look at."""
        return logits if self._channels is None else logits[self._channels]

    def _unperturbed_logits(self, numbers: Iterable[int]) -> dict[int, Tensor]:
        """What some patches say unperturbed, kept or computed again."""
        logits = {number: self._kept[number] for number in dict.fromkeys(numbers)}
        missing = [number for number, kept in logits.items() if kept is None]
        for number, again in self._read(missing, self._volume, self._batches):
            logits[number] = again
            self._kept.add(number, again)
        self.forwards += len(missing)
        return {number: known for number, known in logits.items() if known is not None}

    def _bounds(self) -> Box:
        """The box, in the volume's indices, that holds all that the target's patches see of the volume."""
        boxes = [self.tiling.source_box(patch.box) for patch in self._patches]
        return tuple(slice(min(b.start for b in axis), max(b.stop for b in axis)) for axis in zip(*boxes, strict=True))

    # --- perturbed patches ------------------------------------------------------------------------

    @staticmethod
    def _collect(ready: list[tuple[int, Tensor | tuple[float, ...]]]) -> list[tuple[int, tuple[float, ...]]]:
        """Fetch finished scores from the device, all at once, and empty the list."""
        on_device = [values for _, values in ready if isinstance(values, Tensor)]
        fetched = iter(torch.stack(on_device).tolist() if on_device else [])
        collected = [(n, tuple(next(fetched)) if isinstance(values, Tensor) else values) for n, values in ready]
        ready.clear()
        if not all(math.isfinite(value) for _, values in collected for value in values):
            raise InputError(
                "The network's output is not finite where a part of the volume is hidden: try another baseline, or "
                "full precision."
            )
        return collected

    @torch.inference_mode()
    def _advance(
        self, jobs: list[tuple[_Pending, int]], finish: Callable[[_Pending], Tensor]
    ) -> list[tuple[int, Tensor | tuple[float, ...]]]:
        """Run one batch of (perturbation, patch) jobs; returns the perturbations that it finishes."""
        before = self._unperturbed_logits(number for _, number in jobs)
        output = self._batches.run([self._perturbed(self._patches[number].box, pending) for pending, number in jobs])
        self.forwards += len(jobs)
        finished: list[tuple[int, Tensor | tuple[float, ...]]] = []
        for (pending, number), logits in zip(jobs, output, strict=True):
            patch = self._patches[number]
            self._change(pending, number, (patch.read(self._of_interest(logits)) - before[number]) * patch.weight)
            if pending.done == len(pending.patches):
                finished.append((pending.index, finish(pending)))
                pending.content = pending.logits = None
        return finished

    def _change(self, pending: _Pending, number: int, change: Tensor) -> None:
        """Add what a patch changes to a perturbation's logits: of each patch its own would be many times as much."""
        pending.done += 1
        if len(pending.patches) == 1:
            pending.logits = self._logits.index_select(1, self._patches[number].rows) + change
            return
        rows, places = self._union(pending.patches)
        if pending.logits is None:
            pending.logits = self._logits.index_select(1, rows)
        pending.logits.index_add_(1, places[number], change)

    def _perturbed(self, box: Box, pending: _Pending) -> Tensor:
        """The patch at ``box`` (padded indices) of the perturbed volume."""
        if pending.content is None:
            pending.content = self._content(pending.perturbation, pending.box)
        patch = self._volume[(slice(None), *box)].clone()
        places = self.tiling.shared_voxels(box, pending.box)
        if places is not None:  # the patch may meet the perturbation where there is no volume
            there, here = places
            patch[(slice(None), *there)] = pending.content[(slice(None), *here)]
        return patch

    def _content(self, perturbation: Perturbation, box: Box) -> Tensor:
        """What the perturbed volume holds in a box within the perturbation's own: (C, *box)."""
        here = (slice(None), *box)
        if isinstance(self.baseline, Tensor):
            strength = strength_in(perturbation, box, self.volume.device)
            replaced = self.baseline[here]
        else:  # it looks at all that is hidden, whatever part of it the target's patches see
            whole = strength_in(perturbation, perturbation.box, self.volume.device)
            inner = shift(box, [-s.start for s in perturbation.box])
            strength = whole if isinstance(whole, float) else whole[inner]
            replaced = self.baseline(perturbation.box, whole)[(slice(None), *inner)]
        if isinstance(strength, float):
            return replaced if strength == 1.0 else torch.lerp(self.volume[here], replaced, strength)
        return torch.lerp(self.volume[here], replaced, strength.to(self.volume.dtype).expand_as(replaced))

    # --- scores -----------------------------------------------------------------------------------

    def _values(self, kind: Score, logits: Tensor) -> Tensor:
        at_once = max(1, VALUES_AT_ONCE // len(logits))
        parts = [voxel_values(kind, part, self._label, self.activation) for part in logits.split(at_once, 1)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self._exact)

    def _before(self, kind: Score) -> _Unperturbed:
        if kind not in self._unperturbed:
            values = self._values(kind, self._logits)
            inside, total = values[self._reference].sum(), values.sum()
            score = float(score_of(kind, inside, total, self._size))
            self._unperturbed[kind] = _Unperturbed(values, inside, total, score)
        return self._unperturbed[kind]

    def _changed(self, pending: _Pending) -> tuple[Tensor, Tensor]:
        """Rows of the target that a perturbation's patches hold, and their logits (K, rows) with its changes."""
        assert pending.logits is not None
        if len(pending.patches) == 1:
            return self._patches[pending.patches[0]].rows, pending.logits
        return self._union(pending.patches)[0], pending.logits

    def _losses(self, pending: _Pending, kinds: Sequence[Score]) -> Tensor:
        """What the changes of a perturbation cost, by each score; only the rows that they hold are looked at."""
        rows, logits = self._changed(pending)
        reference, losses = self._reference.index_select(0, rows), []
        for kind in kinds:
            before = self._before(kind)
            moved = self._values(kind, logits) - before.values.index_select(0, rows)
            inside = before.inside + (moved * reference).sum()
            losses.append(before.score - score_of(kind, inside, before.total + moved.sum(), self._size))
        return torch.stack(losses)

    def _effect(self, pending: _Pending, groups: Tensor | None, count: int) -> Tensor:
        """Total, local, added and the loss of each group; see `XAICLIPLib.scoring.effect.Effect`."""
        rows, logits = self._changed(pending)
        before, reference = self._before(self.kind), self._reference.index_select(0, rows)
        moved = self._values(self.kind, logits) - before.values.index_select(0, rows)
        shares = -moved * share_of(self.kind, reference, before.score, before.total + moved.sum(), self._size)
        hidden = self._hidden(pending, rows)
        added = (shares * ((moved > 0) & ~reference)).sum()
        numbers = [shares.sum(), (shares * hidden).sum(), added]  # no indices: they would make a GPU wait
        if groups is None:
            return torch.stack(numbers)
        landed = torch.zeros(count, dtype=shares.dtype, device=shares.device)
        return torch.cat([torch.stack(numbers), landed.index_add(0, groups.index_select(0, rows), shares)])

    def _hidden(self, pending: _Pending, rows: Tensor) -> Tensor:
        """(rows,) bool: the target voxels whose own input the perturbation changes."""
        assert pending.content is not None
        here = (slice(None), *pending.box)
        changed = (pending.content != self.volume[here]).any(0)
        places = [axis.index_select(0, rows) - s.start for axis, s in zip(self._voxels, pending.box, strict=True)]
        inside = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for place, size in zip(places, changed.shape, strict=True):
            inside &= (place >= 0) & (place < size)
        nearest = tuple(place.clamp(0, size - 1) for place, size in zip(places, changed.shape, strict=True))
        return changed[nearest] & inside

    def _try_reduced(self) -> None:
        """Turn to half precision where it says of the most important perturbation what full precision says."""
        hidden = [Perturbation(bounds(self.target.reference))]
        ((_, (full,)),) = [pair for batch in self.lost_by(hidden, (self.kind,)) for pair in batch]
        kept = self._kept
        try:
            self._batches.reduced = True
            self._kept = _Kept(self._most_kept())
            self._blended(self._volume, self._batches, self._kept)
            ((_, (reduced,)),) = [pair for batch in self.lost_by(hidden, (self.kind,)) for pair in batch]
            self.reduced = abs(reduced - full) <= PRECISION_ERROR * abs(full)
            reason = "" if self.reduced else f"it gets {reduced:.3f} where full precision gets {full:.3f}"
        except InputError:  # it reaches farther than half precision does
            reason = "the network's output is not finite in it"
        except RuntimeError as error:  # an operator that has no half precision
            reason = f"the network does not run in it ({(str(error).splitlines() or ['unknown'])[0][:80]})"
        self.forwards = 0
        if not self.reduced:
            self._batches.reduced = False
            self._kept = kept
            self.warnings.append(f"Half precision was not used: {reason}.")

    # --- gradients --------------------------------------------------------------------------------

    def differentiable_score(self, volume: Tensor | None = None) -> float:
        """The score that `gradient` is of: the scorer's own, soft Dice in the place of hard Dice.

        ``volume`` (C, X, Y, Z) is what is scored; by default the unperturbed one.
        """
        return float(self._differentiable(self._logits_of(volume)))

    def gradient(self, volume: Tensor | None = None) -> Tensor:
        """Gradient of the score with respect to the volume, exact under the sliding window, in full precision.

        The graphs of no more than two patches are in memory at once.

        Parameters
        ----------
        volume
            (C, X, Y, Z), where the gradient is taken; by default at the unperturbed volume.

        Returns
        -------
        Tensor
            (C, X, Y, Z), on the device; 0 outside the target's patches. Of hard Dice, which has no gradient, soft
            Dice's.

        Raises
        ------
        InputError
            The network cannot be differentiated.
        """
        gradient = torch.zeros(self._volume.shape, device=self._volume.device)
        following = self.cotangents(volume)
        while waiting := list(islice(following, PATCHES_AT_ONCE)):
            boxes, patches, cotangents = zip(*waiting, strict=True)
            gradients = vector_jacobian_product(self.forward, patches, cotangents)
            for box, own_gradient in zip(boxes, gradients, strict=True):
                gradient[(slice(None), *box)] += own_gradient
        return self.tiling.unpad_gradient(gradient)

    def cotangents(self, volume: Tensor | None = None) -> Iterator[tuple[Box, Tensor, Tensor]]:
        """Yield the target's patches, each with the derivative of the score by the patch's own logits.

        The score is a function of the blended logits at the target's voxels, and these are a weighted sum of the
        patches' logits. So its derivative by them is taken once, and each patch gets its share: the gradient of the
        score by anything inside the network is the sum over the patches of that of ``sum(logits * cotangent)``.

        Parameters
        ----------
        volume
            (C, X, Y, Z); by default the unperturbed one.

        Yields
        ------
        Box
            Bounds of the patch in the padded volume.
        Tensor
            (C, *size), the patch.
        Tensor
            (K, *size), the derivative of the score by the logits of the patch.
        """
        padded = self._volume if volume is None else self.tiling.pad(volume.to(self._volume))
        with torch.inference_mode(False), torch.enable_grad():
            logits = self._logits_of(volume).clone().requires_grad_()
            (by_logits,) = torch.autograd.grad(self._differentiable(logits), logits)
        for patch in self._patches:
            with torch.inference_mode(False), torch.no_grad():
                values = padded[(slice(None), *patch.box)].clone()
                cotangent = torch.zeros((self._classes, values[0].numel()), device=values.device)
                of_interest = slice(None) if self._channels is None else torch.tensor(self._channels)[:, None]
                cotangent[of_interest, patch.inside] = by_logits[:, patch.rows] * patch.weight
            yield patch.box, values, cotangent.reshape(-1, *values.shape[1:])

    def _differentiable(self, logits: Tensor) -> Tensor:
        kind: Score = "soft dice" if self.kind == "hard dice" else self.kind
        return target_score(kind, logits, self._reference.clone(), self._label, self.activation)

    @torch.inference_mode()
    def _logits_of(self, volume: Tensor | None) -> Tensor:
        """Blended logits (K, n) of the target's voxels in a volume (C, X, Y, Z); None: the unperturbed one."""
        if volume is None:
            return self._logits
        full = Batches(self.forward, self._volume.device, self.batch_in_use)
        return self._blended(self.tiling.pad(volume.to(self._volume)), full)


def union_of_rows(rows: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """The rows that any of several patches holds, and where each patch's own rows stand among them."""
    union = torch.cat(list(rows.values())).unique()
    return union, {number: torch.searchsorted(union, own) for number, own in rows.items()}


def strength_in(perturbation: Perturbation, box: Box, device: torch.device) -> float | Tensor:
    """How strongly a perturbation replaces the voxels of a box within its own: one number, or a tensor like the box."""
    if callable(perturbation.strength):
        return perturbation.strength(box, device)
    if isinstance(perturbation.strength, Tensor):
        return perturbation.strength[shift(box, [-s.start for s in perturbation.box])].to(device)
    return float(perturbation.strength)
