"""What a change of the input costs the target: exact incremental sliding-window inference.

With blending weights w the logit of a sliding-window network at voxel v is the weighted mean of f(x_p)(v) over the
patches p that hold v. A score over the voxels T needs only the patches that meet T; a perturbation of the voxels S
changes only the patches that meet S. So only patches that meet both are computed again, every other one is cached.
No assumption about the network is made: each patch is recomputed whole.
"""

from __future__ import annotations

import math
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

PRECISION_ERROR = 0.01
"""Half precision is used where it gets the score lost by hiding the target right to this share."""


@dataclass
class _Patch:
    """A patch that meets the target: where, and what it says there unperturbed."""

    box: Box
    inside: Tensor  # its target voxels, as indices into the flattened patch
    rows: Tensor  # the same voxels as rows of the target
    weight: Tensor  # blending weight over total weight of each of those voxels
    logits: Tensor  # (K, n), unperturbed

    def read(self, logits: Tensor) -> Tensor:
        """Its target voxels, (K, n), of the patch's logits (K, *size)."""
        return logits.flatten(1).index_select(1, self.inside)


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
    changes: dict[int, Tensor] = field(default_factory=dict)  # of the logits, by patch


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
        self._volume = self.tiling.pad(self.volume)
        self._batches = Batches(self.forward, device, self.batch_size)
        self._patches = self._target_patches(self._rows(voxels))
        self._useful = self._bounds()
        patches = self._patches  # not self, which the cache would keep alive with all its tensors
        self._union = lru_cache(maxsize=16)(lambda numbers: union_of_rows({n: patches[n].rows for n in numbers}))
        self._logits = torch.zeros((len(self._patches[0].logits), len(self._reference)), device=device)
        for patch in self._patches:
            self._logits[:, patch.rows] += patch.logits * patch.weight
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

    def _rows(self, voxels: Tensor) -> Tensor:
        """For each voxel of the padded volume its row of the target, -1 for others."""
        rows = torch.full(self._volume.shape[1:], -1, dtype=torch.long, device=voxels.device)
        rows[self.tiling.inner][voxels] = torch.arange(len(self._reference), device=voxels.device)
        return rows

    def _target_patches(self, rows: Tensor) -> list[_Patch]:
        """Find the patches that meet the target and run them unperturbed."""
        weight = self.tiling.weight.to(rows.device).flatten()
        total = torch.zeros(len(self._reference), device=rows.device)
        patches: list[_Patch] = []
        for box in self.tiling.patches:
            local = rows[box].flatten()
            inside = torch.nonzero(local >= 0).flatten()
            if len(inside) == 0:
                continue
            total[local[inside]] += weight[inside]
            patches.append(_Patch(box, inside, local[inside], weight[inside], torch.empty(0)))
        self._run_unperturbed(patches)
        for patch in patches:
            patch.weight = patch.weight / total[patch.rows]
        return patches

    @torch.inference_mode()
    def _run_unperturbed(self, patches: list[_Patch]) -> None:
        """Fill in what the patches say."""
        for patch, logits in _read(patches, self._volume, self._batches):
            patch.logits = logits

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
        output = self._batches.run([self._perturbed(self._patches[number].box, pending) for pending, number in jobs])
        self.forwards += len(jobs)
        finished: list[tuple[int, Tensor | tuple[float, ...]]] = []
        for (pending, number), logits in zip(jobs, output, strict=True):
            patch = self._patches[number]
            pending.changes[number] = (patch.read(logits) - patch.logits) * patch.weight
            if len(pending.changes) == len(pending.patches):
                finished.append((pending.index, finish(pending)))
                pending.content = None
        return finished

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
        return voxel_values(kind, logits, self.target.label, self.activation).to(self._exact)

    def _before(self, kind: Score) -> _Unperturbed:
        if kind not in self._unperturbed:
            values = self._values(kind, self._logits)
            inside, total = values[self._reference].sum(), values.sum()
            score = float(score_of(kind, inside, total, self._size))
            self._unperturbed[kind] = _Unperturbed(values, inside, total, score)
        return self._unperturbed[kind]

    def _changed(self, pending: _Pending) -> tuple[Tensor, Tensor]:
        """Rows of the target that a perturbation's patches hold, and their logits (K, rows) with its changes."""
        if len(pending.patches) == 1:
            (number,) = pending.patches
            rows = self._patches[number].rows
            return rows, self._logits.index_select(1, rows) + pending.changes[number]
        rows, places = self._union(pending.patches)
        logits = self._logits.index_select(1, rows)
        for number, change in pending.changes.items():
            logits.index_add_(1, places[number], change)
        return rows, logits

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
        reference = torch.nonzero(self.target.reference)
        ends = zip(reference.amin(0).tolist(), reference.amax(0).tolist(), strict=True)
        hidden = [Perturbation(tuple(slice(a, b + 1) for a, b in ends))]
        ((_, (full,)),) = [pair for batch in self.lost_by(hidden, (self.kind,)) for pair in batch]
        kept = [patch.logits for patch in self._patches]
        try:
            self._batches.reduced = True
            self._run_unperturbed(self._patches)
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
            for patch, logits in zip(self._patches, kept, strict=True):
                patch.logits = logits
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
                cotangent = torch.zeros((len(by_logits), values[0].numel()), device=values.device)
                cotangent[:, patch.inside] = by_logits[:, patch.rows] * patch.weight
            yield patch.box, values, cotangent.reshape(-1, *values.shape[1:])

    def _differentiable(self, logits: Tensor) -> Tensor:
        kind: Score = "soft dice" if self.kind == "hard dice" else self.kind
        return target_score(kind, logits, self._reference.clone(), self.target.label, self.activation)

    @torch.inference_mode()
    def _logits_of(self, volume: Tensor | None) -> Tensor:
        """Blended logits (K, n) of the target's voxels in a volume (C, X, Y, Z); None: the unperturbed one."""
        if volume is None:
            return self._logits
        blended = torch.zeros_like(self._logits)
        full = Batches(self.forward, self._volume.device, self.batch_in_use)
        for patch, logits in _read(self._patches, self.tiling.pad(volume.to(self._volume)), full):
            blended[:, patch.rows] += logits * patch.weight
        return blended


def _read(patches: list[_Patch], padded: Tensor, batches: Batches) -> Iterator[tuple[_Patch, Tensor]]:
    """Each patch with its target voxels' logits in a padded volume; the logits of all would fill the memory."""
    done = 0
    while done < len(patches):
        size = batches.size_for(padded[(slice(None), *patches[done].box)])  # it may shrink on the way
        part = patches[done : done + size]
        output = batches.run([padded[(slice(None), *patch.box)] for patch in part])
        yield from ((patch, patch.read(logits)) for patch, logits in zip(part, output, strict=True))
        done += len(part)


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
