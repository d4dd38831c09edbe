"""From words to a probability volume: dense image-text similarity, slice by slice.

Every patch of every axial slice is compared with texts of the structure that is looked for, of the structures it
might be mistaken for, and of background; a softmax over all of them gives the probability of the prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.anatomy import Structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization import context
from XAICLIPLib.localization.context import BACKGROUND, Contexts
from XAICLIPLib.localization.crops import crop_embeddings
from XAICLIPLib.localization.dense import dense_embeddings, has_patch_tokens
from XAICLIPLib.localization.openclip import ImageTextModel
from XAICLIPLib.localization.slices import Modality, prepare_slices

Advance = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

CONTRASTS = tuple(
    "liver,spleen,left kidney,right kidney,stomach,pancreas,gallbladder,aorta,inferior vena cava,esophagus,"
    "urinary bladder,small bowel,colon,heart,brain,lung,bone,muscle,fat,air".split(",")
)
"""Structures that a prompt competes with where the localizer's folder does not name its own."""

SAME_MEANING = 0.8
"""Cosine, after the mean over the contrasts is taken off, from which a contrast means what a free text means."""


@dataclass(frozen=True)
class Settings:
    """How a localizer is used; a model's folder may say so in ``xaiclip.json``, with these names.

    Attributes
    ----------
    contrasts
        Structures of the vocabulary that the prompt competes with.
    slice_mm
        Distance of the axial slices.
    field_of_view
        Edge of the square slice over the larger extent of the body.
    shifts
        Passes per axis, each moved by a fraction of a patch: finer maps for more time.
    smoothing_mm
        Standard deviation of the 3D Gaussian over the stacked maps.
    threshold
        Relative probability (see ``certain``) from which a voxel belongs to the region.
    certain
        Probabilities are divided by their largest, but by no less than this: a patch holds more than one organ, so that
        even in the middle of a small one it never comes near 1; and what is nowhere likely must stay unlikely.
    batch_size
        Slices embedded together.
    wordings
        Texts of each contrast (of the prompt, all are used).
    """

    contrasts: tuple[str, ...] = CONTRASTS
    slice_mm: float = 5.0
    field_of_view: float = 1.1
    shifts: int = 1
    smoothing_mm: float = 5.0
    threshold: float = 0.5
    certain: float = 0.5
    batch_size: int = 16
    wordings: int = 4

    @classmethod
    def of(cls, model: ImageTextModel) -> Settings:
        """The settings in the model's folder, else the defaults (sparser slices for towers that need crops)."""
        path = model.folder / "xaiclip.json" if model.folder else None
        if path is None or not path.is_file():
            return cls() if has_patch_tokens(model.model.visual) else cls(slice_mm=10.0, batch_size=4)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            unknown = set(found) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
            if "contrasts" in found:
                found["contrasts"] = _structures(found["contrasts"])
            return cls(**found)._checked()
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be used ({error}).") from error

    def _checked(self) -> Settings:
        """Itself, or a ValueError that names the setting that cannot be."""
        whole = {"shifts": 1, "batch_size": 1, "wordings": 1}
        least = {"slice_mm": 0.1, "field_of_view": 0.1, "smoothing_mm": 0.0, "threshold": 0.0, "certain": 0.01} | whole
        for name, low in least.items():
            value, high = getattr(self, name), 1.0 if name in ("threshold", "certain") else math.inf
            kinds = (int,) if name in whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ValueError(f"{name} is {value!r}, no {'whole ' if name in whole else ''}number")
            if not (low <= value <= high and value < math.inf):
                raise ValueError(f"{name} is {value}, not in {low:g} to {high:g}")
        return self


class Localizer(Protocol):
    """Anything that turns an image and words into a probability volume."""

    @property
    def name(self) -> str:
        """Short name for the user."""
        ...

    @property
    def threshold(self) -> float:
        """Probability from which a voxel belongs to the region."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """Name, checksum and settings, for the record of an explanation."""
        ...

    def locate(
        self, image: sitk.Image, prompt: Structure | str, modality: Modality | None, advance: Advance
    ) -> sitk.Image:
        """Probability (float32, on a grid of the localizer's own) that a voxel belongs to the prompt."""
        ...


@dataclass(frozen=True)
class View:
    """A volume as an image-text model sees it.

    Attributes
    ----------
    slices
        Its square axial slices; of them the grid counts.
    grey
        (S, H, W), windowed to [0, 1].
    seen
        Embedding maps (N, h, w, D) of batches of slices, by their checksum, as far as they have been computed.
    """

    slices: sitk.Image
    grey: Tensor
    seen: dict[bytes, Tensor]


class ClipLocalizer:
    """Localisation with an open_clip model. Satisfies `Localizer`.

    Parameters
    ----------
    model
        The image-text model.
    settings
        How it is used; by default what its folder says.
    contexts
        Learned prompts; structures that have none, and volumes of a modality that they are not for, get hand-written
        ones.

    References
    ----------
    C. Zhou, C. C. Loy, B. Dai. "Extract Free Dense Labels from CLIP" (MaskCLIP), ECCV 2022.
    """

    def __init__(
        self, model: ImageTextModel, settings: Settings | None = None, contexts: Contexts | None = None
    ) -> None:
        self.model = model
        self.settings = settings or Settings.of(model)
        self.contexts = contexts
        self._embedded: dict[tuple[str, ...], Tensor] = {}
        self._learned: dict[str, Tensor] = {}
        self._volume = b""  # the last volume's checksum and embeddings: another prompt for it costs next to nothing
        self._seen: dict[bytes, Tensor] = {}

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def threshold(self) -> float:
        """From the settings."""
        return self.settings.threshold

    @property
    def provenance(self) -> dict[str, Any]:
        """Name, checksum, settings, and the learned prompts where there are any."""
        settings = {f.name: getattr(self.settings, f.name) for f in fields(self.settings)}
        told = {"name": self.name, "kind": "open_clip", "sha256": self.model.checksum, "settings": settings}
        return told if self.contexts is None else told | {"prompts": self.contexts.provenance}

    def locate(
        self,
        image: sitk.Image,
        prompt: Structure | str,
        modality: Modality | None,
        advance: Advance = lambda done, total: None,
    ) -> sitk.Image:
        """Where the prompt is.

        Parameters
        ----------
        image
            A volume of any orientation; HU where ``modality`` is CT.
        prompt
            A structure of the vocabulary (all its phrases are used), or free text.
        modality
            Decides the grey-value window and the templates.
        advance
            Called with the slices done and in all.

        Returns
        -------
        SimpleITK.Image
            Relative probability in [0, 1] (`Settings.certain`), float32, on square axial slices around the body.
        """
        classes, sought = self.class_embeddings(prompt, modality)
        seen = self.view(image, modality)
        volume = hashlib.sha256(seen.grey.numpy().tobytes()).digest()
        if volume != self._volume:
            self._volume, self._seen = volume, {}
        return self.probability(View(seen.slices, seen.grey, self._seen), classes, sought, advance)

    def with_contexts(self, contexts: Contexts | None) -> ClipLocalizer:
        """The same localizer with other learned prompts, or none."""
        other = type(self)(self.model, self.settings, contexts)
        other._embedded = self._embedded
        return other

    def embeddings(self, view: View) -> Tensor:
        """Patch embeddings of a volume, (S, h, w, D) of unit length, on the CPU."""
        self._seen = view.seen
        parts = view.grey.split(self.settings.batch_size)
        with torch.inference_mode():
            embedded = torch.cat([self._embed_slices(part.to(self.model.device)).cpu() for part in parts])
        return embedded.clone()  # usable where gradients are computed

    def view(self, image: sitk.Image, modality: Modality | None) -> View:
        """A volume as the model sees it."""
        slices = field_of_view(image, self.model.side, self.settings.slice_mm, self.settings.field_of_view)
        return View(slices, torch.from_numpy(prepare_slices(sitk.GetArrayFromImage(slices), modality)), {})

    def probability(
        self, view: View, classes: Tensor, sought: Tensor, advance: Advance = lambda done, total: None
    ) -> sitk.Image:
        """Relative probability of the sought classes (see `class_embeddings`) in a volume, as `locate` gives it."""
        slices, count = view.slices, len(view.grey)
        self._seen = view.seen
        maps: list[Tensor] = []
        for batch in view.grey.split(self.settings.batch_size):
            maps.append(self._probability(batch.to(self.model.device), classes, sought).cpu())
            advance(sum(map(len, maps)), count)
        # By a finite kernel: ITK's recursive one leaves [0, 1] and wants four slices.
        sigma = self.settings.smoothing_mm / np.array(slices.GetSpacing()[::-1])
        smooth = ndimage.gaussian_filter(torch.cat(maps).numpy(), sigma, mode="nearest")
        relative = smooth / max(float(smooth.max()), self.settings.certain)
        stacked = sitk.GetImageFromArray(np.clip(relative, 0, 1).astype(np.float32))
        stacked.CopyInformation(slices)
        return stacked

    def class_embeddings(self, prompt: Structure | str, modality: Modality | None) -> tuple[Tensor, Tensor]:
        """Text embeddings of all classes, (K, D) of unit length, and which of them are the prompt, (K,) bool.

        The prompt's own come first: one for free text; one for a structure, with one for each of its parts among the
        contrasts, or these alone where they make it up. A contrast that shares a part with the prompt does not compete
        with it, save a wider one where the prompt is a contrast too.
        """
        if isinstance(prompt, str):
            own = [self.embed(anatomy.texts(prompt, modality))]
            rivals = [anatomy.structure(name) for name in self.settings.contrasts]
            written = [self.embed(self.wordings(s, modality)) for s in rivals]
            same = _same_meaning(own[0], written) if written else None  # among what people wrote, not what was learned
            rivals = [s for n, s in enumerate(rivals) if n != same]
        else:
            known, rivals = self.classes(prompt)
            own = [self.class_embedding(s.name, anatomy.texts(s, modality), modality) for s in known]
        others = [self.class_embedding(s.name, self.wordings(s, modality), modality) for s in rivals]
        background = self.class_embedding(BACKGROUND, anatomy.background_phrases(), modality)
        sought = torch.zeros(len(own) + len(others) + 1, dtype=torch.bool, device=self.model.device)
        sought[: len(own)] = True
        return torch.stack([*own, *others, background]), sought

    def classes(self, prompt: Structure) -> tuple[list[Structure], list[Structure]]:
        """The structures that a prompt is made of, and those that compete with it (see `class_embeddings`)."""
        rivals = [anatomy.structure(name) for name in self.settings.contrasts]
        inside = anatomy.parts(prompt)
        known = [s for s in rivals if s.name in inside and s != prompt]
        if not prompt.members or not set(prompt.members) <= {s.name for s in known}:
            known = [prompt, *known]
        # Beside "mandible", the contrast "bone" means the other bones; without it, it includes the mandible.
        apart = {s.name for s in known} <= set(self.settings.contrasts)
        return known, [s for s in rivals if not inside & anatomy.parts(s) or (apart and inside < anatomy.parts(s))]

    def class_embedding(self, name: str, written: Sequence[str], modality: Modality | None) -> Tensor:
        """Embedding (D,) of a class: of its learned prompt where there is one, else of these hand-written texts."""
        if self.contexts is None or name not in self.contexts.vectors or not self.contexts.suit(modality):
            return self.embed(written)
        if name not in self._learned:
            with torch.inference_mode():
                self._learned[name] = context.embed(self.model, {name: self.contexts.vectors[name]})[0]
        return self._learned[name]

    def wordings(self, structure: Structure, modality: Modality | None) -> list[str]:
        """Hand-written texts of a contrast."""
        return [t.format(structure.name) for t in anatomy.templates(modality)][: self.settings.wordings]

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Mean direction (D,) of the embeddings of several texts."""
        key = tuple(texts)
        if key not in self._embedded:
            tokens = self.model.tokenize(list(texts)).to(self.model.device)
            parts = [_pooled(self.model.model.encode_text(part)) for part in tokens.split(64)]
            mean = functional.normalize(torch.cat(parts).float(), dim=-1).mean(0)
            self._embedded[key] = functional.normalize(mean, dim=-1)
        return self._embedded[key]

    @torch.inference_mode()
    def _probability(self, grey: Tensor, classes: Tensor, sought: Tensor) -> Tensor:
        """Probability (N, H, W) of the sought classes on slices (N, H, W) in [0, 1]."""
        side, shifts = grey.shape[-1], self.settings.shifts
        total, passes = torch.zeros_like(grey), torch.zeros_like(grey[0])
        step = 0.0  # the first pass is not moved, and says how large a patch is
        for down in range(shifts):
            for right in range(shifts):
                y, x = round(down * step), round(right * step)
                moved = functional.pad(grey, (x, 0, y, 0))[:, :side, :side]
                map_ = (self.model.scale * self._embed_slices(moved) @ classes.T).softmax(-1)[..., sought].sum(-1)
                full = functional.interpolate(map_[:, None], size=(side, side), mode="bilinear")[:, 0]
                total[:, : side - y, : side - x] += full[:, y:, x:]
                passes[: side - y, : side - x] += 1
                step = side / map_.shape[-1] / shifts
        return total / passes

    def _embed_slices(self, grey: Tensor) -> Tensor:
        """Embedding maps (N, h, w, D) of slices (N, H, W), float32; kept until the volume changes."""
        key = hashlib.sha256(grey.cpu().numpy().tobytes()).digest()
        if key not in self._seen:
            self._seen[key] = self._run_tower(grey)
        return self._seen[key]

    def _run_tower(self, grey: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(v, device=grey.device)[None, :, None, None] for v in (self.model.mean, self.model.std)
        )
        images = (grey[:, None] - mean) / std
        visual = self.model.model.visual
        with torch.autocast(grey.device.type, torch.float16, enabled=grey.device.type == "cuda"):
            if has_patch_tokens(visual):
                return dense_embeddings(visual, images)[1].float()
            return crop_embeddings(lambda crops: _pooled(self.model.model.encode_image(crops)), images)


def _pooled(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Embeddings (N, D) of whole images or texts; a tower with ``output_tokens`` gives tokens beside them."""
    return found[0] if isinstance(found, tuple) else found


def _structures(names: Any) -> tuple[str, ...]:
    """The contrasts of a settings file, each once: a structure named twice would weigh twice."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("contrasts is no list of names")
    return tuple(dict.fromkeys(anatomy.structure(name).name for name in names))


def _same_meaning(own: Tensor, others: list[Tensor]) -> int | None:
    """Which of the contrasts means what the free text means, if one does."""
    middle = torch.stack(others).mean(0)
    alike = functional.cosine_similarity(torch.stack(others) - middle, (own - middle)[None], dim=-1)
    best = int(alike.argmax())
    return best if float(alike[best]) >= SAME_MEANING else None


def field_of_view(image: sitk.Image, side: int, slice_mm: float, margin: float) -> sitk.Image:
    """Square axial slices around the body, ``side`` pixels wide, all that the volume has along the body's axis.

    The pixel size follows the body, so that a child and a heavy adult fill the slice alike. Float32, index axes
    nearest to left, posterior, superior; outside the volume its lowest value.
    """
    coarse = imaging.standard_axial(image, (4.0, 4.0, slice_mm))
    # A copy: a view does not keep the image alive that it looks into.
    inside = np.argwhere(sitk.GetArrayFromImage(imaging.body_mask(coarse)).any(axis=0))
    low, high = inside.min(0)[::-1], inside.max(0)[::-1] + 1  # x, y
    pixel = float((high - low).max()) * 4.0 * margin / side
    along = (coarse.GetSize()[2] - 1) / 2
    middle = coarse.TransformContinuousIndexToPhysicalPoint([*((low + high - 1) / 2).tolist(), along])
    axes = np.reshape(coarse.GetDirection(), (3, 3))
    turned = sitk.DICOMOrient(image, "LPS")
    # Enough slices to reach both ends: what lies outside of the last one would never belong to a region.
    count = math.ceil(turned.GetSize()[2] * turned.GetSpacing()[2] / slice_mm - 1e-6)
    grid = sitk.Image([side, side, count], sitk.sitkUInt8)
    grid.SetSpacing([pixel, pixel, slice_mm])
    grid.SetDirection(coarse.GetDirection())
    half = (np.array([side, side, count]) - 1) / 2 * [pixel, pixel, slice_mm]
    grid.SetOrigin((np.array(middle) - axes @ half).tolist())
    lowest = float(sitk.GetArrayViewFromImage(image).min())
    return imaging.resample_like(image, grid, "linear", lowest, antialias=True)
