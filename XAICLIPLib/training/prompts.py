"""Tune a localizer's prompts on a few labelled scans; both towers stay as they are.

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
"""Of the validation volumes, over all steps."""

PATIENCE = 4
"""Evaluations without a better one after which tuning ends."""

BATCH = 4096
"""Patches a step."""

RATE = 0.02
"""Step of Adam, as a share of the size of the vectors that it begins with: towers scale their tokens differently."""

BALANCE = 0.3
"""A class weighs its share of the patches to the minus this: else what is small would count for nothing."""


@dataclass(frozen=True)
class Overlap:
    """How a structure's region (without its margin) overlaps the label: means over the volumes that have it."""

    dice: float
    recall: float


@dataclass(frozen=True)
class Tuned:
    """What tuning gives.

    Attributes
    ----------
    prompts
        The best learned prompts.
    before, after
        By structure, on the validation volumes: with hand-written prompts, and with these.
    step
        After how many steps they were reached.
    absent
        Labelled structures that no training volume has: nothing was learned for them.
    """

    prompts: LearnedPrompts
    before: Mapping[str, Overlap]
    after: Mapping[str, Overlap]
    step: int
    absent: tuple[str, ...] = ()

    @property
    def better(self) -> bool:
        """Whether the regions overlap the labels better than with hand-written prompts, over all structures."""
        return mean_dice(self.after) > mean_dice(self.before)


def mean_dice(overlaps: Mapping[str, Overlap]) -> float:
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
) -> Tuned:
    """Learn context vectors for the labelled structures.

    Parameters
    ----------
    localizer
        Whose prompts are tuned; learned ones that it has already are not looked at.
    training, validation
        Scans with labels; on the second, which are not learned from, the best state is chosen.
    labels
        Structure by value of the label maps.
    length
        Context vectors of each structure (M).
    steps
        At most; fewer where the validation volumes gain no more.
    seed
        Of the patches drawn at each step.
    modality
        Of all volumes; by default guessed from the first.
    tell
        Called with a line of text on how far it is.

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
        image, drawn = pair.read()
        modality = modality or imaging.guess_modality(image)
        view = plain.view(image, modality)
        patches.append(_patches(plain, view, image, _masks(drawn, view, labels, structures)))
    every = _Patches(torch.cat([p.embeddings for p in patches]), torch.cat([p.shares for p in patches]))
    there = [s for s, share in zip(structures, every.shares.float().sum(0).tolist(), strict=True) if share > 0]
    if not there:
        raise InputError(
            f"{training[0].labels} and the other training labels have none of the values "
            f"{', '.join(map(str, labels))}: check which value is which structure."
        )
    shares = every.shares[:, [structures.index(s) for s in there]]
    held = [_held(plain, pair, labels, there, modality) for pair in validation]
    if not any(mask.any() for _, masks in held for mask in masks):
        raise InputError(f"{validation[0].labels} and the other validation labels have no structure that is learned.")

    before = overlaps(plain, held, there, modality)
    tell(f"hand-written prompts: mean Dice {mean_dice(before):.3f} on the validation scans")
    vectors, after, step = _learn(
        plain, _Patches(every.embeddings, shares), held, there, modality, length, steps, seed, tell
    )
    absent = tuple(s.name for s in structures if s not in there)
    return Tuned(LearnedPrompts(vectors, modality), before, after, step, absent)


def _learn(
    plain: ClipLocalizer,
    patches: _Patches,
    held: Sequence[tuple[PreparedVolume, list[NDArray[Any]]]],
    structures: Sequence[Structure],
    modality: Modality | None,
    length: int,
    steps: int,
    seed: int,
    tell: Callable[[str], None],
) -> tuple[dict[str, Tensor], dict[str, Overlap], int]:
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
    best: tuple[float, dict[str, Tensor], dict[str, Overlap], int] | None = None
    waited, every = 0, max(1, steps // EVALUATIONS)
    for step in range(1, steps + 1):
        drawn = torch.randint(len(patches.shares), (min(BATCH, len(patches.shares)),), generator=generator)
        embedded = patches.embeddings[drawn].to(model.device).float()
        shares = patches.shares[drawn].to(model.device).float()
        shares = torch.cat([shares, (1 - shares.sum(1, keepdim=True)).clamp(min=0)], 1)
        texts = iter(learned_prompts.embed(model, learned))
        classes = torch.stack([next(texts) if value is None else value for value in fixed])
        chance = (model.scale * embedded @ classes.T).softmax(-1) @ groups
        loss = -(weight * shares * chance.clamp(min=1e-6).log()).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % every and step != steps:
            continue
        state = {name: value.detach().cpu().clone() for name, value in learned.items()}
        found = overlaps(plain.with_prompts(LearnedPrompts(state, modality)), held, structures, modality)
        score = mean_dice(found)
        tell(f"step {step} of {steps}: loss {float(loss.detach()):.4f}, mean Dice {score:.3f} on the validation scans")
        waited = 0 if best is None or score > best[0] else waited + 1
        if waited == 0:
            best = (score, state, found, step)
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
    asked = [plain.classes(s) for s in structures]
    owner = {own.name: n for n, (known, _) in enumerate(asked) for own in known}
    rivals = [
        anatomy.structure(name)
        for name in plain.settings.contrasts
        if name not in owner and all(name in {r.name for r in others} for _, others in asked)
    ]
    names = [*owner, *(r.name for r in rivals), BACKGROUND]
    owners = [*owner.values(), *[len(structures)] * (len(rivals) + 1)]
    written = [plain.class_embedding(r.name, plain.wordings(r, modality), modality).clone() for r in rivals]
    return names, torch.tensor(owners), [*[None] * len(owner), *written, None]


def _masks(
    drawn: sitk.Image, view: PreparedVolume, labels: Mapping[int, Structure], structures: Sequence[Structure]
) -> list[NDArray[Any]]:
    """Each structure on the grid of the slices, (S, H, W) bool."""
    placed = sitk.GetArrayFromImage(imaging.resample_like(drawn, view.slices, "nearest"))
    return [np.isin(placed, [v for v, s in labels.items() if s == structure]) for structure in structures]


def _patches(plain: ClipLocalizer, view: PreparedVolume, image: sitk.Image, masks: Sequence[NDArray[Any]]) -> _Patches:
    """The patches of a volume that the body reaches into."""
    embedded = plain.embeddings(view)
    grid = (embedded.shape[1], embedded.shape[2])
    body = sitk.GetArrayFromImage(imaging.resample_like(imaging.body_mask(image), view.slices, "nearest"))
    # Structure by structure: all of them at once would take gigabytes.
    shares = [functional.adaptive_avg_pool2d(torch.from_numpy(m).float()[:, None], grid)[:, 0] for m in masks]
    inside = functional.adaptive_avg_pool2d(torch.from_numpy(body).float()[:, None], grid)[:, 0] > 0
    return _Patches(embedded[inside].half(), torch.stack(shares, -1)[inside].half())


def _held(
    plain: ClipLocalizer,
    pair: Pair,
    labels: Mapping[int, Structure],
    structures: Sequence[Structure],
    modality: Modality | None,
) -> tuple[PreparedVolume, list[NDArray[Any]]]:
    image, drawn = pair.read()
    view = plain.view(image, modality)
    return view, _masks(drawn, view, labels, structures)


def overlaps(
    localizer: ClipLocalizer,
    held: Sequence[tuple[PreparedVolume, list[NDArray[Any]]]],
    structures: Sequence[Structure],
    modality: Modality | None,
) -> dict[str, Overlap]:
    """How the regions of the structures overlap their labels, on the grid of the slices."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number, structure in enumerate(structures):
        classes, is_prompt = localizer.class_embeddings(structure, modality)
        for view, masks in held:
            truth = masks[number]
            if truth.any():
                core = clean(localizer.probability(view, classes, is_prompt), localizer.threshold, 0)
                region = sitk.GetArrayViewFromImage(core) != 0
                shared, size = float((region & truth).sum()), float(truth.sum())
                found.setdefault(structure.name, []).append((2 * shared / (float(region.sum()) + size), shared / size))
    return {name: Overlap(*np.mean(rows, axis=0).tolist()) for name, rows in found.items()}


def table(before: Mapping[str, Overlap], after: Mapping[str, Overlap]) -> str:
    """Before and after, a line for each structure and one for their mean."""
    width = max(map(len, [*before, "structure"]), default=0)
    lines = [f"{'structure':<{width}}  Dice before  after   recall before  after"]
    rows = {name: (before[name], after[name]) for name in before}
    rows["mean"] = tuple(  # type: ignore[assignment]
        Overlap(mean_dice(o), float(np.mean([x.recall for x in o.values()])) if o else math.nan)
        for o in (before, after)
    )
    for name, (a, b) in rows.items():
        lines.append(f"{name:<{width}}  {a.dice:11.2f}  {b.dice:5.2f}  {a.recall:13.2f}  {b.recall:5.2f}")
    return "\n".join(lines)
