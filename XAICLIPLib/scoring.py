"""What a change of the input costs the target: exact incremental sliding-window inference.

With blending weights w the logit of a sliding-window network at voxel v is the weighted mean of f(x_p)(v) over the
patches p that hold v. A score over the voxels T needs only the patches that meet T; a perturbation of the voxels S
changes only the patches that meet S. So only patches that meet both are computed again, every other one is cached.
No assumption about the network is made: each patch is recomputed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.perturbation.perturbation import Perturbation
from XAICLIPLib.segmentation.backpropagation import TOGETHER, vector_jacobian_product
from XAICLIPLib.segmentation.segmenter import Activation
from XAICLIPLib.segmentation.sliding_window import Box, Tiling, intersect, run_fitting, shift

Score = Literal["soft dice", "hard dice", "mean probability"]
SCORES: tuple[Score, ...] = get_args(Score)


@dataclass(frozen=True)
class Target:
    """What is explained.

    Attributes
    ----------
    name
        The structure's name.
    label
        Output channel of the network; several where the target is a group of structures, such as both kidneys.
    reference
        (X, Y, Z) bool: the structure as unperturbed, what the perturbed prediction is compared with.
    voxels
        (X, Y, Z) bool: where the comparison is made; usually the reference with a rim around it, so that a prediction
        that spills over loses score as well. What of the reference lies outside does not count.
    """

    name: str
    label: int | tuple[int, ...]
    reference: Tensor
    voxels: Tensor


def probability(logits: Tensor, label: int | tuple[int, ...], activation: Activation) -> Tensor:
    """Probability of one channel, or of any of several, from logits (K, ...)."""
    channels = [label] if isinstance(label, int) else list(label)
    if activation == "softmax":
        return logits.softmax(0)[channels].sum(0)
    return logits[channels].amax(0).sigmoid()


def decided(logits: Tensor, label: int | tuple[int, ...], activation: Activation) -> Tensor:
    """Whether each voxel is given to one channel, or to any of several, from logits (K, ...)."""
    channels = [label] if isinstance(label, int) else list(label)
    if activation == "softmax":
        return torch.isin(logits.argmax(0), torch.tensor(channels, device=logits.device))
    return logits[channels].amax(0) > 0


def target_score(
    kind: Score, logits: Tensor, reference: Tensor, label: int | tuple[int, ...], activation: Activation
) -> Tensor:
    """Score of logits (K, n) against the reference (n) bool, a scalar tensor in [0, 1].

    ``soft dice`` is 2 sum(p r) / (sum(p) + sum(r)) with the probability p and the reference r; ``hard dice`` takes the
    decided voxels for p; ``mean probability`` is the mean of p over the reference.
    """
    if kind == "mean probability":
        return probability(logits, label, activation)[reference].mean()
    if kind == "soft dice":
        predicted = probability(logits, label, activation)
    else:
        predicted = decided(logits, label, activation).to(logits.dtype)
    truth = reference.to(logits.dtype)
    return 2 * (predicted * truth).sum() / (predicted.sum() + truth.sum())


@dataclass
class _Patch:
    """A patch that meets the target: where, and what it says there unperturbed."""

    box: Box
    inside: tuple[Tensor, ...]  # indices of its target voxels within the patch
    rows: Tensor  # the same voxels as rows of the target
    weight: Tensor  # blending weight over total weight of each of those voxels
    logits: Tensor  # (K, n), unperturbed


@dataclass
class _Pending:
    """A perturbation whose patches are under way."""

    index: int
    change: Tensor | None
    left: int


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
        (C, X, Y, Z), what replaces perturbed voxels.
    tiling
        The network's patches over the volume.
    target
        What is scored.
    activation
        How logits become probabilities.
    kind
        The score.
    batch_size
        Patches computed together, of whatever perturbations; halved when memory runs out.

    Attributes
    ----------
    full_score
        Score of the unperturbed volume.
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
    baseline: Tensor
    tiling: Tiling
    target: Target
    activation: Activation = "softmax"
    kind: Score = "soft dice"
    batch_size: int = 4
    full_score: float = field(init=False)
    forwards: int = field(init=False, default=0)
    warnings: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        device = self.volume.device
        voxels = self.target.voxels.to(device)
        self._reference = self.target.reference.to(device)[voxels]
        if not bool(self._reference.any()):
            raise InputError(
                f"The network finds no {self.target.name} in this volume, so there is nothing to explain: "
                "choose another structure with --target or give a mask."
            )
        padded_rows = torch.full(voxels.shape, -1, dtype=torch.long, device=device)
        padded_rows[voxels] = torch.arange(len(self._reference), device=device)
        self._volume = self.tiling.pad(self.volume)
        rows = self._pad_like(padded_rows, -1)
        self._patches = self._target_patches(rows)
        count = len(self._reference)
        channels = self._patches[0].logits.shape[0]
        self._logits = torch.zeros((channels, count), device=device)
        for patch in self._patches:
            self._logits[:, patch.rows] += patch.logits * patch.weight
        self.full_score = float(self._score(self._logits))

    def _pad_like(self, indices: Tensor, value: int) -> Tensor:
        """Pad an index volume (X, Y, Z) as the volume itself is padded."""
        padded = torch.full(self._volume.shape[1:], value, dtype=indices.dtype, device=indices.device)
        inner = tuple(slice(o, o + s) for o, s in zip(self.tiling.offset, self.tiling.shape, strict=True))
        padded[inner] = indices
        return padded

    @torch.inference_mode()
    def _target_patches(self, rows: Tensor) -> list[_Patch]:
        """Find the patches that meet the target and run them unperturbed."""
        weight = self.tiling.weight.to(rows.device)
        total = torch.zeros(int(rows.max()) + 1, device=rows.device)
        found: list[_Patch] = []
        for box in self.tiling.patches:
            local = rows[box]
            inside = torch.nonzero(local >= 0, as_tuple=True)
            if len(inside[0]) == 0:
                continue
            own = local[inside]
            total[own] += weight[inside]
            found.append(_Patch(box, inside, own, weight[inside], torch.empty(0)))
        done = 0
        while done < len(found):
            part = found[done : done + self.batch_size]  # the size may shrink on the way
            output = self._run([self._volume[(slice(None), *patch.box)] for patch in part])
            for patch, logits in zip(part, output, strict=True):
                patch.logits = logits[(slice(None), *patch.inside)].clone()
            done += len(part)
        for patch in found:
            patch.weight = patch.weight / total[patch.rows]
        return found

    def _run(self, patches: list[Tensor]) -> Tensor:
        """Run patches (C, *size) as batches that fit, and go on with the size that did."""
        output, fitted = run_fitting(self.forward, patches)
        if fitted < len(patches):
            self.warnings.append(f"Memory ran out: batches were cut from {len(patches)} to {fitted} patches.")
            self.batch_size = fitted
        return output

    def _score(self, logits: Tensor) -> Tensor:
        return target_score(self.kind, logits, self._reference, self.target.label, self.activation)

    def touched(self, perturbation: Perturbation) -> list[int]:
        """Which of the target's patches a perturbation changes: what its evaluation costs."""
        moved = shift(perturbation.box, self.tiling.offset)
        return [n for n, patch in enumerate(self._patches) if intersect(patch.box, moved)]

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        """Score lost by each perturbation, exactly as full inference on the perturbed volume would give it.

        Yields lists of (number of the perturbation, score lost), one list per network batch, in order; a perturbation
        that meets no patch of the target loses nothing and costs nothing. Close the iterator to cancel.
        """
        queue: list[tuple[_Pending, int, Perturbation]] = []
        ready: list[tuple[int, Tensor | float]] = []
        for index, perturbation in enumerate(perturbations):
            touched = self.touched(perturbation)
            if not touched:
                ready.append((index, 0.0))
                continue
            pending = _Pending(index, None, len(touched))
            queue.extend((pending, patch, perturbation) for patch in touched)
            while len(queue) >= self.batch_size:
                size = self.batch_size
                ready += self._advance(queue[:size])
                del queue[:size]
                yield self._collect(ready)
        while queue:
            size = self.batch_size
            ready += self._advance(queue[:size])
            del queue[:size]
            yield self._collect(ready)
        if ready:
            yield self._collect(ready)

    @staticmethod
    def _collect(ready: list[tuple[int, Tensor | float]]) -> list[tuple[int, float]]:
        """Fetch finished scores from the device, all at once, and empty the list."""
        on_device = [value for _, value in ready if isinstance(value, Tensor)]
        fetched = iter(torch.stack(on_device).tolist() if on_device else [])
        collected = [(n, next(fetched) if isinstance(value, Tensor) else value) for n, value in ready]
        ready.clear()
        return collected

    @torch.inference_mode()
    def _advance(self, jobs: list[tuple[_Pending, int, Perturbation]]) -> list[tuple[int, Tensor | float]]:
        """Run one batch of (perturbation, patch) jobs; returns the perturbations that it finishes."""
        patches = [self._perturbed(self._patches[number].box, perturbation) for _, number, perturbation in jobs]
        output = self._run(patches)
        self.forwards += len(jobs)
        finished: list[tuple[int, Tensor | float]] = []
        for (pending, number, _), logits in zip(jobs, output, strict=True):
            patch = self._patches[number]
            if pending.change is None:
                pending.change = self._logits.clone()
            pending.change[:, patch.rows] += (logits[(slice(None), *patch.inside)] - patch.logits) * patch.weight
            pending.left -= 1
            if pending.left == 0:
                finished.append((pending.index, self.full_score - self._score(pending.change)))
                pending.change = None
        return finished

    def _perturbed(self, box: Box, perturbation: Perturbation) -> Tensor:
        """The patch at ``box`` (padded indices) of the perturbed volume."""
        patch = self._volume[(slice(None), *box)].clone()
        support = shift(perturbation.box, self.tiling.offset)
        common = intersect(box, support)
        assert common is not None  # only touched patches are asked for
        here = (slice(None), *shift(common, [-s.start for s in box]))
        source = (slice(None), *shift(common, [-o for o in self.tiling.offset]))
        replaced = self.baseline[source]
        if callable(perturbation.strength):
            share = perturbation.strength(source[1:], patch.device).to(patch)
            patch[here] = patch[here] * (1 - share) + replaced * share
        elif isinstance(perturbation.strength, Tensor):
            share = perturbation.strength[shift(common, [-s.start for s in support])].to(patch)
            patch[here] = patch[here] * (1 - share) + replaced * share
        elif perturbation.strength == 1.0:
            patch[here] = replaced
        else:
            patch[here] = patch[here] * (1 - perturbation.strength) + replaced * perturbation.strength
        return patch

    def differentiable_score(self, volume: Tensor | None = None) -> float:
        """The score that `gradient` is of: the scorer's own, soft Dice in the place of hard Dice.

        ``volume`` (C, X, Y, Z) is what is scored; by default the unperturbed one.
        """
        return float(self._differentiable(self._target_logits(volume)))

    def gradient(self, volume: Tensor | None = None) -> Tensor:
        """Gradient of the score with respect to the volume, exact under the sliding window.

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
        waiting: list[tuple[Box, Tensor, Tensor]] = []
        for number, following in enumerate(self.cotangents(volume), 1):
            waiting.append(following)
            if len(waiting) == TOGETHER or number == len(self._patches):
                found = vector_jacobian_product(self.forward, [p for _, p, _ in waiting], [c for _, _, c in waiting])
                for n, (box, _, _) in enumerate(waiting):
                    gradient[(slice(None), *box)] += found[n]
                waiting.clear()
        return gradient[(slice(None), *self._inner)]

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
            logits = self._target_logits(volume).clone().requires_grad_()
            (by_logits,) = torch.autograd.grad(self._differentiable(logits), logits)
        for patch in self._patches:
            inside: tuple[slice | Tensor, ...] = (slice(None), *patch.inside)
            with torch.inference_mode(False), torch.no_grad():
                values = padded[(slice(None), *patch.box)].clone()
                cotangent = torch.zeros((len(by_logits), *values.shape[1:]), device=values.device)
                cotangent[inside] = by_logits[:, patch.rows] * patch.weight
            yield patch.box, values, cotangent

    @property
    def _inner(self) -> Box:
        """Where the volume lies in the padded one."""
        return tuple(slice(o, o + s) for o, s in zip(self.tiling.offset, self.tiling.shape, strict=True))

    def _differentiable(self, logits: Tensor) -> Tensor:
        kind: Score = "soft dice" if self.kind == "hard dice" else self.kind
        return target_score(kind, logits, self._reference.clone(), self.target.label, self.activation)

    @torch.inference_mode()
    def _target_logits(self, volume: Tensor | None) -> Tensor:
        """Blended logits (K, n) of the target's voxels in a volume (C, X, Y, Z); None: the unperturbed one."""
        if volume is None:
            return self._logits
        padded = self.tiling.pad(volume.to(self._volume))
        blended = torch.zeros_like(self._logits)
        done = 0
        while done < len(self._patches):
            part = self._patches[done : done + self.batch_size]  # the size may shrink on the way
            output = self._run([padded[(slice(None), *patch.box)] for patch in part])
            for patch, logits in zip(part, output, strict=True):
                blended[:, patch.rows] += logits[(slice(None), *patch.inside)] * patch.weight
            done += len(part)
        return blended
