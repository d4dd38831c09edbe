"""From words to a probability volume: dense image-text similarity, slice by slice.

Every patch of every axial slice is compared with texts of the prompt's structure, of structures that might be confused
with it, and of background. A softmax over all of them gives the probability of the prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from XAICLIPLib import anatomy
from XAICLIPLib.anatomy import Structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization import learned_prompts
from XAICLIPLib.localization.crops import crop_embeddings
from XAICLIPLib.localization.dense import dense_embeddings, has_patch_tokens
from XAICLIPLib.localization.layout import slices_around_body
from XAICLIPLib.localization.learned_prompts import BACKGROUND, LearnedPrompts
from XAICLIPLib.localization.openclip import ImageTextModel
from XAICLIPLib.localization.slices import Modality, prepare_slices

Advance = Callable[[int, int], None]
"""Called with the number of slices that are done, and their total."""

CONTRASTS = tuple(
    "liver,spleen,left kidney,right kidney,stomach,pancreas,gallbladder,aorta,inferior vena cava,esophagus,"
    "urinary bladder,small bowel,colon,heart,brain,lung,bone,muscle,fat,air".split(",")
)
"""Structures that a prompt is compared with, unless the localizer's folder names others."""

SAME_MEANING = 0.8
"""Cosine, after subtracting the mean over the contrasts, from which a contrast means the same as a free text."""


@dataclass(frozen=True)
class Settings:
    """How a localizer is used. A model's folder may set these values in ``xaiclip.json``, by these names.

    Attributes
    ----------
    contrasts
        Structures of the vocabulary that the prompt competes with.
    slice_mm
        Distance of the axial slices.
    field_of_view
        Edge of the square slice over the larger extent of the body.
    usual_width_mm
        Width of a usual body, for CTs whose sides cut through the body (`XAICLIPLib.localization.layout`); 0: what is
        visible fills the slice.
    shifts
        Passes per axis, each moved by a fraction of a patch: finer maps for more time.
    smoothing_mm
        Standard deviation of the 3D Gaussian over the stacked maps.
    threshold
        Relative probability (see ``certain``) from which a voxel belongs to the region.
    certain
        Probabilities are divided by their maximum, but at least by this value. A patch holds more than one organ, so
        that even in the middle of a small organ the probability is far below 1; and a structure that is unlikely
        everywhere must stay unlikely.
    batch_size
        Slices embedded together.
    wordings
        Number of texts for each contrast (for the prompt, all texts are used).
    unknown_words
        Phrases of the vocabulary that the model was never taught. They are left out of the texts of their structure,
        where they would only weaken the others; as prompts they mean their structure all the same.
    least_peak
        By structure, the smoothed probability that it must reach somewhere: below it, the structure is not in the scan.
    """

    contrasts: tuple[str, ...] = CONTRASTS
    slice_mm: float = 5.0
    field_of_view: float = 1.1
    usual_width_mm: float = 0.0
    shifts: int = 1
    smoothing_mm: float = 5.0
    threshold: float = 0.5
    certain: float = 0.5
    batch_size: int = 16
    wordings: int = 4
    unknown_words: tuple[str, ...] = ()
    least_peak: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ImageTextModel) -> Settings:
        """The settings in the model's folder, else the defaults (sparser slices for towers that need crops)."""
        path = model.folder / "xaiclip.json" if model.folder else None
        if path is None or not path.is_file():
            return cls() if has_patch_tokens(model.model.visual) else cls(slice_mm=10.0, batch_size=4)
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            unknown = set(values) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
            if "contrasts" in values:
                values["contrasts"] = _structures(values["contrasts"])
            if "unknown_words" in values:
                values["unknown_words"] = _strings("unknown_words", values["unknown_words"])
            if "least_peak" in values:
                values["least_peak"] = _peaks(values["least_peak"])
            return cls(**values)._checked()
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be used ({error}).") from error

    def _checked(self) -> Settings:
        """These settings; a ValueError names the first invalid one."""
        whole = {"shifts": 1, "batch_size": 1, "wordings": 1}
        least = {
            "slice_mm": 0.1,
            "field_of_view": 0.1,
            "usual_width_mm": 0.0,
            "smoothing_mm": 0.0,
            "threshold": 0.0,
            "certain": 0.01,
        } | whole
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
        """Short name that the user sees."""
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
class PreparedVolume:
    """A volume as slices for an image-text model, with their embeddings.

    Attributes
    ----------
    slices
        Its square axial slices; only their grid is used.
    grey
        (S, H, W), windowed to [0, 1].
    seen
        Embedding maps (N, h, w, D) of the batches of slices that have been computed, by the checksum of the batch.
    """

    slices: sitk.Image
    grey: Tensor
    embedding_maps: dict[bytes, Tensor]


class ClipLocalizer:
    """Localisation with an open_clip model. Satisfies `Localizer`.

    Parameters
    ----------
    model
        The image-text model.
    settings
        How it is used; by default as its folder says.
    prompts
        Learned prompts. Hand-written texts are used for structures without one, and for volumes of another modality.

    References
    ----------
    C. Zhou, C. C. Loy, B. Dai. "Extract Free Dense Labels from CLIP" (MaskCLIP), ECCV 2022.
    """

    def __init__(
        self, model: ImageTextModel, settings: Settings | None = None, prompts: LearnedPrompts | None = None
    ) -> None:
        self.model = model
        self.settings = settings or Settings.of(model)
        self.prompts = prompts
        self._embedded: dict[tuple[str, ...], Tensor] = {}
        self._learned: dict[str, Tensor] = {}
        self._volume = b""  # checksum of the last volume, whose embeddings are kept: another prompt is then fast
        self._embedding_maps: dict[bytes, Tensor] = {}

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
        provenance = {"name": self.name, "kind": "open_clip", "sha256": self.model.checksum, "settings": settings}
        return provenance if self.prompts is None else provenance | {"prompts": self.prompts.provenance}

    def locate(
        self,
        image: sitk.Image,
        prompt: Structure | str,
        modality: Modality | None,
        advance: Advance = lambda done, total: None,
    ) -> sitk.Image:
        """Relative probability of the prompt in a volume.

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
        classes, is_prompt = self.class_embeddings(prompt, modality)
        prepared = self.view(image, modality)
        volume = hashlib.sha256(prepared.grey.numpy().tobytes()).digest()
        if volume != self._volume:
            self._volume, self._embedding_maps = volume, {}
        prepared = PreparedVolume(prepared.slices, prepared.grey, self._embedding_maps)
        return self.probability(prepared, classes, is_prompt, advance, self.least_peak(prompt))

    def least_peak(self, prompt: Structure | str) -> float:
        """Smoothed probability that a prompt must reach somewhere to be in the scan; of several parts the lowest."""
        if isinstance(prompt, str):
            return 0.0
        known, _ = self.classes(prompt)
        return min(self.settings.least_peak.get(s.name, 0.0) for s in known)

    def with_prompts(self, prompts: LearnedPrompts | None) -> ClipLocalizer:
        """The same localizer with other learned prompts, or with none."""
        other = type(self)(self.model, self.settings, prompts)
        other._embedded = self._embedded
        return other

    def embeddings(self, view: PreparedVolume) -> Tensor:
        """Patch embeddings of a volume, (S, h, w, D) of unit length, on the CPU."""
        self._embedding_maps = view.embedding_maps
        parts = view.grey.split(self.settings.batch_size)
        with torch.inference_mode():
            embedded = torch.cat([self._embed_slices(part.to(self.model.device)).cpu() for part in parts])
        return embedded.clone()  # usable where gradients are computed

    def view(self, image: sitk.Image, modality: Modality | None) -> PreparedVolume:
        """The slices of a volume, prepared for the model."""
        s = self.settings
        # What an unknown modality shows may be a part of the body that is much smaller than a trunk.
        usual_width_mm = s.usual_width_mm if modality == "CT" else 0.0
        slices = slices_around_body(image, self.model.side, s.slice_mm, s.field_of_view, usual_width_mm)
        return PreparedVolume(slices, torch.from_numpy(prepare_slices(sitk.GetArrayFromImage(slices), modality)), {})

    def probability(
        self,
        view: PreparedVolume,
        classes: Tensor,
        is_prompt: Tensor,
        advance: Advance = lambda done, total: None,
        least_peak: float = 0.0,
    ) -> sitk.Image:
        """Relative probability of the prompt's classes (see `class_embeddings`) in a volume, as `locate` gives it.

        It is 0 everywhere where the probability nowhere reaches ``least_peak``.
        """
        slices, count = view.slices, len(view.grey)
        self._embedding_maps = view.embedding_maps
        maps: list[Tensor] = []
        for batch in view.grey.split(self.settings.batch_size):
            maps.append(self._probability(batch.to(self.model.device), classes, is_prompt).cpu())
            advance(sum(map(len, maps)), count)
        # A finite kernel: ITK's recursive filter leaves [0, 1], and needs four slices.
        sigma = self.settings.smoothing_mm / np.array(slices.GetSpacing()[::-1])
        smooth = ndimage.gaussian_filter(torch.cat(maps).numpy(), sigma, mode="nearest")
        peak = float(smooth.max())
        relative = smooth / max(peak, self.settings.certain) if peak >= least_peak else np.zeros_like(smooth)
        stacked = sitk.GetImageFromArray(np.clip(relative, 0, 1).astype(np.float32))
        stacked.CopyInformation(slices)
        return stacked

    def class_embeddings(self, prompt: Structure | str, modality: Modality | None) -> tuple[Tensor, Tensor]:
        """Text embeddings of all classes, (K, D) of unit length, and which of them belong to the prompt, (K,) bool.

        The prompt's classes come first. Free text is one class. A structure is one class, and each of its parts among
        the contrasts is another; where these parts make up the whole structure, they are its only classes. A contrast
        that shares a part with the prompt does not compete with it, except for a wider one where the prompt is a
        contrast too.
        """
        if isinstance(prompt, str):
            sought = [self.embed(anatomy.texts(prompt, modality))]
            rivals = [anatomy.structure(name) for name in self.settings.contrasts]
            rival_texts = [self.embed(self.wordings(s, modality)) for s in rivals]
            # Learned prompts are left out of this comparison.
            same = _contrast_of_same_meaning(sought[0], rival_texts) if rival_texts else None
            rivals = [s for n, s in enumerate(rivals) if n != same]
        else:
            known, rivals = self.classes(prompt)
            sought = [self.class_embedding(s.name, self.texts(s, modality), modality) for s in known]
        others = [self.class_embedding(s.name, self.wordings(s, modality), modality) for s in rivals]
        background = self.class_embedding(BACKGROUND, anatomy.background_phrases(), modality)
        is_prompt = torch.zeros(len(sought) + len(others) + 1, dtype=torch.bool, device=self.model.device)
        is_prompt[: len(sought)] = True
        return torch.stack([*sought, *others, background]), is_prompt

    def classes(self, prompt: Structure) -> tuple[list[Structure], list[Structure]]:
        """The structures that a prompt consists of, and those that compete with it (see `class_embeddings`)."""
        rivals = [anatomy.structure(name) for name in self.settings.contrasts]
        inside = anatomy.parts(prompt)
        known = [s for s in rivals if s.name in inside and s != prompt]
        if not prompt.members or not set(prompt.members) <= {s.name for s in known}:
            known = [prompt, *known]
        # Beside "mandible", the contrast "bone" means the other bones; without it, it includes the mandible.
        apart = {s.name for s in known} <= set(self.settings.contrasts)
        return known, [s for s in rivals if not inside & anatomy.parts(s) or (apart and inside < anatomy.parts(s))]

    def class_embedding(self, name: str, texts: Sequence[str], modality: Modality | None) -> Tensor:
        """Embedding (D,) of a class: of its learned prompt if there is one, else of these hand-written texts."""
        if self.prompts is None or name not in self.prompts.vectors or not self.prompts.fits(modality):
            return self.embed(texts)
        if name not in self._learned:
            with torch.inference_mode():
                self._learned[name] = learned_prompts.embed(self.model, {name: self.prompts.vectors[name]})[0]
        return self._learned[name]

    def texts(self, structure: Structure, modality: Modality | None) -> list[str]:
        """Hand-written texts of a prompt's structure: every template with every phrase that the model knows."""
        known = [p for p in structure.phrases if p not in self.settings.unknown_words] or [structure.name]
        return [text for phrase in known for text in anatomy.texts(phrase, modality)]

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
    def _probability(self, grey: Tensor, classes: Tensor, is_prompt: Tensor) -> Tensor:
        """Probability (N, H, W) of the prompt's classes on slices (N, H, W) in [0, 1]."""
        side, shifts = grey.shape[-1], self.settings.shifts
        total, passes = torch.zeros_like(grey), torch.zeros_like(grey[0])
        step = 0.0  # the first pass is not shifted, and gives the size of a patch
        for down in range(shifts):
            for right in range(shifts):
                y, x = round(down * step), round(right * step)
                shifted = functional.pad(grey, (x, 0, y, 0))[:, :side, :side]
                probability = (
                    (self.model.scale * self._embed_slices(shifted) @ classes.T).softmax(-1)[..., is_prompt].sum(-1)
                )
                full = functional.interpolate(probability[:, None], size=(side, side), mode="bilinear")[:, 0]
                total[:, : side - y, : side - x] += full[:, y:, x:]
                passes[: side - y, : side - x] += 1
                step = side / probability.shape[-1] / shifts
        return total / passes

    def _embed_slices(self, grey: Tensor) -> Tensor:
        """Embedding maps (N, h, w, D) of slices (N, H, W), float32; kept until the volume changes."""
        key = hashlib.sha256(grey.cpu().numpy().tobytes()).digest()
        if key not in self._embedding_maps:
            self._embedding_maps[key] = self._run_tower(grey)
        return self._embedding_maps[key]

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


def _pooled(embeddings: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Embeddings (N, D) of whole images or texts; a tower with ``output_tokens`` also gives tokens."""
    return embeddings[0] if isinstance(embeddings, tuple) else embeddings


def _structures(names: Any) -> tuple[str, ...]:
    """The contrasts of a settings file, each once: a structure named twice would weigh twice."""
    return tuple(dict.fromkeys(anatomy.structure(name).name for name in _strings("contrasts", names)))


def _peaks(values: Any) -> dict[str, float]:
    if not isinstance(values, dict):
        raise ValueError("least_peak names no structures")
    for name, peak in values.items():
        if isinstance(peak, bool) or not isinstance(peak, (int, float)) or not 0 <= peak <= 1:
            raise ValueError(f"least_peak of {name} is {peak!r}, no probability")
    return {anatomy.structure(name).name: float(peak) for name, peak in values.items()}


def _strings(setting: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{setting} is no list of names")
    return tuple(values)


def _contrast_of_same_meaning(text: Tensor, contrasts: list[Tensor]) -> int | None:
    """Index of the contrast that means the same as the free text; None if there is none."""
    middle = torch.stack(contrasts).mean(0)
    similarity = functional.cosine_similarity(torch.stack(contrasts) - middle, (text - middle)[None], dim=-1)
    best = int(similarity.argmax())
    return best if float(similarity[best]) >= SAME_MEANING else None
