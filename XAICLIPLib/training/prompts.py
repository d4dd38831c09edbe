"""Tune a localizer's prompts on a few labelled scans; the weights of both towers stay unchanged.

The patches of all slices are embedded once. What is learned are context vectors per structure
(`XAICLIPLib.localization.learned_prompts`), so that the softmax over the localizer's own classes gives each patch the
shares of the labelled structures in it. A patch's unlabelled rest may be any other class: a label map that does not
draw the bones does not say that there are none.

References
----------
K. Zhou, J. Yang, C. C. Loy, Z. Liu. "Learning to Prompt for Vision-Language Models" (CoOp), IJCV 2022.
G. Shi, L. Xiao, Y. Chen, S. K. Zhou. "Marginal loss and exclusion loss for partially supervised multi-organ
segmentation", Medical Image Analysis 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.anatomy import Structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization import learned_prompts
from XAICLIPLib.localization.learned_prompts import BACKGROUND, LearnedPrompts
from XAICLIPLib.localization.localizer import ClipLocalizer, PreparedVolume
from XAICLIPLib.localization.region import clean
from XAICLIPLib.localization.slices import Modality
from XAICLIPLib.training.pairs import Pair

CONTEXT = 8
STEPS = 200
EVALUATIONS = 10
"""Number of evaluations on the validation volumes over all steps."""

PATIENCE = 4
"""Evaluations in a row without an improvement after which tuning ends."""

BATCH = 4096
"""Patches per step."""

RATE = 0.02
"""Learning rate of Adam, relative to the standard deviation of the initial vectors: towers scale tokens differently."""

BALANCE = 0.3
"""A class is weighted by its share of the patches to the power of minus this, so that small structures count."""


@dataclass(frozen=True)
class RegionOverlap:
    """How a structure's region (without its margin) overlaps the label: means over the volumes that have it."""

    dice: float
    recall: float


@dataclass(frozen=True)
class TuningResult:
    """The result of tuning.

    Attributes
    ----------
    prompts
        The best learned prompts.
    before, after
        Overlap by structure on the validation volumes, with hand-written prompts and with the learned ones.
    step
        The step after which they were reached.
    absent
        Labelled structures that no training volume has: nothing was learned for them.
    """

    prompts: LearnedPrompts
    before: Mapping[str, RegionOverlap]
    after: Mapping[str, RegionOverlap]
    step: int
    absent: tuple[str, ...] = ()

    @property
    def better(self) -> bool:
        """Whether the regions overlap the labels better than with hand-written prompts, over all structures."""
        return mean_dice(self.after) > mean_dice(self.before)


def mean_dice(overlaps: Mapping[str, RegionOverlap]) -> float:
    """Mean over the structures."""
    return float(np.mean([o.dice for o in overlaps.values()])) if overlaps else 0.0


@dataclass(frozen=True)
class _Patches:
    """Patches inside the body: embeddings (P, D), and the labelled structures' shares of each (P, L), float16."""

    embeddings: Tensor
    shares: Tensor


def tune(
    localizer: ClipLocalizer,
    training: Sequence[Pair],
    validation: Sequence[Pair],
    labels: Mapping[int, Structure],
    *,
    length: int = CONTEXT,
    steps: int = STEPS,
    seed: int = 0,
    modality: Modality | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> TuningResult:
    """Learn context vectors for the labelled structures.

    Parameters
    ----------
    localizer
        The localizer to tune; prompts that it has already learned are ignored.
    training, validation
        Scans with labels, to learn from and to choose the best step on.
    labels
        Structure by value of the label maps.
    length
        Context vectors of each structure (M).
    steps
        Most steps; tuning ends earlier where the validation volumes no longer improve.
    seed
        Seed of the random patches of each step.
    modality
        Modality of all volumes; by default guessed from the first.
    tell
        Called with a line of text on the progress.

    Raises
    ------
    InputError
        A volume cannot be used, no labelled structure is in the training or the validation volumes, or the vectors do
        not fit into the model's texts.
    """
    if not training or not validation:
        raise InputError("There are too few labelled scans: give at least one to learn from and one to validate on.")
    plain = localizer.with_prompts(None)
    structures = list(dict.fromkeys(labels.values()))
    patches: list[_Patches] = []
    for number, pair in enumerate(training, 1):
        tell(f"embedding {pair.image.name} ({number} of {len(training)})")
        image, label_map = pair.read()
        modality = modality or imaging.guess_modality(image)
        view = plain.view(image, modality)
        patches.append(_patches(plain, view, image, _masks(label_map, view, labels, structures)))
    all_patches = _Patches(torch.cat([p.embeddings for p in patches]), torch.cat([p.shares for p in patches]))
    present = [s for s, share in zip(structures, all_patches.shares.float().sum(0).tolist(), strict=True) if share > 0]
    if not present:
        raise InputError(
            f"{training[0].labels} and the other training labels have none of the values "
            f"{', '.join(map(str, labels))}: check which value is which structure."
        )
    shares = all_patches.shares[:, [structures.index(s) for s in present]]
    cases = [_validation_case(plain, pair, labels, present, modality) for pair in validation]
    if not any(mask.any() for _, masks in cases for mask in masks):
        raise InputError(f"{validation[0].labels} and the other validation labels have no structure that is learned.")

    before = region_overlaps(plain, cases, present, modality)
    tell(f"hand-written prompts: mean Dice {mean_dice(before):.3f} on the validation scans")
    vectors, after, step = _learn(
        plain, _Patches(all_patches.embeddings, shares), cases, present, modality, length, steps, seed, tell
    )
    absent = tuple(s.name for s in structures if s not in present)
    return TuningResult(LearnedPrompts(vectors, modality), before, after, step, absent)


def _learn(
    plain: ClipLocalizer,
    patches: _Patches,
    cases: Sequence[tuple[PreparedVolume, list[NDArray[Any]]]],
    structures: Sequence[Structure],
    modality: Modality | None,
    length: int,
    steps: int,
    seed: int,
    tell: Callable[[str], None],
) -> tuple[dict[str, Tensor], dict[str, RegionOverlap], int]:
    """The best vectors by name, their overlaps on the validation volumes, and the step that gave them."""
    model = plain.model
    model.model.requires_grad_(False)
    names, owner, fixed = _classes(plain, structures, modality)
    begin = learned_prompts.initial_vectors(model, length, modality)
    learned = {n: begin.clone().requires_grad_() for n, value in zip(names, fixed, strict=True) if value is None}
    optimizer = torch.optim.Adam(list(learned.values()), lr=RATE * float(begin.std()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    groups = functional.one_hot(owner, len(structures) + 1).float().to(model.device)  # (K, L + 1)
    mean = patches.shares.float().mean(0)
    mean = torch.cat([mean, 1 - mean.sum()[None]]).clamp(min=1e-6)
    weight = (mean**-BALANCE / (mean ** (1 - BALANCE)).sum()).to(model.device)
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, dict[str, Tensor], dict[str, RegionOverlap], int] | None = None
    waited, interval = 0, max(1, steps // EVALUATIONS)
    for step in range(1, steps + 1):
        indices = torch.randint(len(patches.shares), (min(BATCH, len(patches.shares)),), generator=generator)
        embedded = patches.embeddings[indices].to(model.device).float()
        shares = patches.shares[indices].to(model.device).float()
        shares = torch.cat([shares, (1 - shares.sum(1, keepdim=True)).clamp(min=0)], 1)
        texts = iter(learned_prompts.embed(model, learned))
        classes = torch.stack([next(texts) if value is None else value for value in fixed])
        probability = (model.scale * embedded @ classes.T).softmax(-1) @ groups
        loss = -(weight * shares * probability.clamp(min=1e-6).log()).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % interval and step != steps:
            continue
        state = {name: value.detach().cpu().clone() for name, value in learned.items()}
        overlaps = region_overlaps(plain.with_prompts(LearnedPrompts(state, modality)), cases, structures, modality)
        score = mean_dice(overlaps)
        tell(f"step {step} of {steps}: loss {float(loss.detach()):.4f}, mean Dice {score:.3f} on the validation scans")
        waited = 0 if best is None or score > best[0] else waited + 1
        if waited == 0:
            best = (score, state, overlaps, step)
        elif waited >= PATIENCE:
            break
    assert best is not None
    return best[1], best[2], best[3]


def _classes(
    plain: ClipLocalizer, structures: Sequence[Structure], modality: Modality | None
) -> tuple[list[str], Tensor, list[Tensor | None]]:
    """The classes of the softmax that the localizer uses for the labelled structures.

    Returns their names, for each which labelled structure it belongs to (the number of them for none), and its
    hand-written embedding, None where it is to be learned.
    """
    known_and_rivals = [plain.classes(s) for s in structures]
    owner = {member.name: n for n, (known, _) in enumerate(known_and_rivals) for member in known}
    rivals = [
        anatomy.structure(name)
        for name in plain.settings.contrasts
        if name not in owner and all(name in {r.name for r in others} for _, others in known_and_rivals)
    ]
    names = [*owner, *(r.name for r in rivals), BACKGROUND]
    owners = [*owner.values(), *[len(structures)] * (len(rivals) + 1)]
    written = [plain.class_embedding(r.name, plain.wordings(r, modality), modality).clone() for r in rivals]
    return names, torch.tensor(owners), [*[None] * len(owner), *written, None]


def _masks(
    label_map: sitk.Image, view: PreparedVolume, labels: Mapping[int, Structure], structures: Sequence[Structure]
) -> list[NDArray[Any]]:
    """Each structure on the grid of the slices, (S, H, W) bool."""
    labels_on_slices = sitk.GetArrayFromImage(imaging.resample_like(label_map, view.slices, "nearest"))
    return [np.isin(labels_on_slices, [v for v, s in labels.items() if s == structure]) for structure in structures]


def _patches(plain: ClipLocalizer, view: PreparedVolume, image: sitk.Image, masks: Sequence[NDArray[Any]]) -> _Patches:
    """The patches of a volume that contain a part of the body."""
    embedded = plain.embeddings(view)
    grid = (embedded.shape[1], embedded.shape[2])
    body = sitk.GetArrayFromImage(imaging.resample_like(imaging.body_mask(image), view.slices, "nearest"))
    # Structure by structure: all of them at once would take gigabytes.
    shares = [functional.adaptive_avg_pool2d(torch.from_numpy(m).float()[:, None], grid)[:, 0] for m in masks]
    inside = functional.adaptive_avg_pool2d(torch.from_numpy(body).float()[:, None], grid)[:, 0] > 0
    return _Patches(embedded[inside].half(), torch.stack(shares, -1)[inside].half())


def _validation_case(
    plain: ClipLocalizer,
    pair: Pair,
    labels: Mapping[int, Structure],
    structures: Sequence[Structure],
    modality: Modality | None,
) -> tuple[PreparedVolume, list[NDArray[Any]]]:
    image, label_map = pair.read()
    view = plain.view(image, modality)
    return view, _masks(label_map, view, labels, structures)


def region_overlaps(
    localizer: ClipLocalizer,
    cases: Sequence[tuple[PreparedVolume, list[NDArray[Any]]]],
    structures: Sequence[Structure],
    modality: Modality | None,
) -> dict[str, RegionOverlap]:
    """Overlap of each structure's region with its label, on the grid of the slices."""
    values: dict[str, list[tuple[float, float]]] = {}
    for number, structure in enumerate(structures):
        classes, is_prompt = localizer.class_embeddings(structure, modality)
        for view, masks in cases:
            truth = masks[number]
            if truth.any():
                core = clean(localizer.probability(view, classes, is_prompt), localizer.threshold, 0)
                region = sitk.GetArrayViewFromImage(core) != 0
                shared, size = float((region & truth).sum()), float(truth.sum())
                values.setdefault(structure.name, []).append((2 * shared / (float(region.sum()) + size), shared / size))
    return {name: RegionOverlap(*np.mean(rows, axis=0).tolist()) for name, rows in values.items()}


def table(before: Mapping[str, RegionOverlap], after: Mapping[str, RegionOverlap]) -> str:
    """A table of the overlaps before and after, with a line for each structure and one for their mean."""
    width = max(map(len, [*before, "structure"]), default=0)
    lines = [f"{'structure':<{width}}  Dice before  after   recall before  after"]
    rows = {name: (before[name], after[name]) for name in before}
    rows["mean"] = tuple(  # type: ignore[assignment]
        RegionOverlap(mean_dice(o), float(np.mean([x.recall for x in o.values()])) if o else math.nan)
        for o in (before, after)
    )
    for name, (a, b) in rows.items():
        lines.append(f"{name:<{width}}  {a.dice:11.2f}  {b.dice:5.2f}  {a.recall:13.2f}  {b.recall:5.2f}")
    return "\n".join(lines)
