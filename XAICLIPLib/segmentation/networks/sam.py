"""Segment Anything (SAM): networks that segment what is in a box, slice by slice, through transformers.

SAM and its medical descendants (MedSAM) segment in 2D what is in a box. Here the box of each axial slice is that of a
region, as in the XAI-CLIP paper, and the slices together are the segmentation. Each slice is a patch, so that after a
perturbation only the changed slices run again.

References
----------
A. Kirillov et al. "Segment Anything", ICCV 2023.
J. Ma et al. "Segment anything in medical images", Nature Communications 15, 2024 (the window of CT, boxes alone).
A. Alzubaidi et al. "XAI-CLIP", arXiv 2602.07017, 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError, installing, reason
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.sliding_window import Tiling
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.json_values import choice, flag, keys, list_of, number, optional, whole_number
from XAICLIPLib.system.mappings import read_mapping
from XAICLIPLib.system.torchvision_operators import import_without_operators
from XAICLIPLib.system.weights import read_state

HUB = "hf-hub:"
"""Prefix of the id of a model that is downloaded from the Hugging Face hub on first use."""

CT_WINDOW_HU = (-160.0, 240.0)
"""Soft tissue window of MedSAM's training, level 40 and width 400."""

PERCENTILES = (0.5, 99.5)
"""Percentiles of the body's intensities that become black and white for anything but CT, as in MedSAM's training."""

BOX_MARGIN_MM = 4.0
"""Margin of the box around the region on each slice. SAM was trained on boxes drawn by people, which are not tight."""

THINNEST_MM = 1.0
"""Least distance of slices: each costs a run of the network, and closer ones hardly differ."""

BACKGROUND_LOGIT = -20.0
"""Logit on a slice without a box."""

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}


_SIZE, _WIDTH, _LAYERS, _SMALL = whole_number(1, 1 << 13), whole_number(1, 1 << 14), whole_number(1, 256), number(0, 1)
_ACTIVATION = choice("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish")
_SETTINGS = keys(
    {
        "vision_config": keys(
            {
                **dict.fromkeys(("hidden_size", "output_channels", "num_pos_feats"), _WIDTH),
                **dict.fromkeys(("num_attention_heads", "num_channels", "image_size", "patch_size"), _SIZE),
                "num_hidden_layers": _LAYERS,
                "hidden_act": _ACTIVATION,
                **dict.fromkeys(("layer_norm_eps", "attention_dropout"), _SMALL),
                **dict.fromkeys(("qkv_bias", "use_abs_pos", "use_rel_pos"), flag),
                "mlp_ratio": number(0, 64),
                "mlp_dim": optional(_WIDTH),
                "window_size": whole_number(0, 1 << 13),
                "global_attn_indexes": list_of(whole_number(0, 255), 0, 256),
            },
            others="left out",
        ),
        "prompt_encoder_config": keys(
            {
                "hidden_size": _WIDTH,
                **dict.fromkeys(("image_size", "patch_size", "mask_input_channels", "num_point_embeddings"), _SIZE),
                "hidden_act": _ACTIVATION,
                "layer_norm_eps": _SMALL,
            },
            others="left out",
        ),
        "mask_decoder_config": keys(
            {
                **dict.fromkeys(("hidden_size", "mlp_dim", "iou_head_hidden_dim"), _WIDTH),
                **dict.fromkeys(("num_hidden_layers", "iou_head_depth"), _LAYERS),
                **dict.fromkeys(("num_attention_heads", "attention_downsample_rate", "num_multimask_outputs"), _SIZE),
                "hidden_act": _ACTIVATION,
                "layer_norm_eps": _SMALL,
            },
            others="left out",
        ),
    },
    others="left out",
)
"""What of a ``config.json`` reaches transformers: what the architecture depends on, as plain values. By other keys it
fetches kernels and adapters."""


def is_sam(path: Path) -> bool:
    """Whether a folder holds a SAM as transformers saves it: ``config.json`` of the type ``sam``, and weights."""
    try:
        return read_mapping(path / "config.json").get("model_type") == "sam" and _weights_in(path) is not None
    except (OSError, ValueError, RecursionError):
        return False


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a SAM: from a grey image to its input.

    Attributes
    ----------
    side
        Pixels of the longer side after resizing.
    padded
        Side of the square network input in pixels: zeros are added at the right and below.
    scale
        Factor on grey values in [0, 1], before ``mean`` and ``std``.
    mean, std
        Normalisation of the three channels.
    interpolation
        ``bilinear`` or ``bicubic``.
    """

    side: int = 1024
    padded: int = 1024
    scale: float = 1.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, folder: Path) -> Preprocessing:
        """From ``preprocessor_config.json``, or the processor's own file; SAM's where there is neither.

        Raises
        ------
        InputError
            The file asks for steps that are not supported.
        """
        content: Mapping[str, Any] = {}
        try:
            if (folder / "preprocessor_config.json").is_file():
                content = read_mapping(folder / "preprocessor_config.json")
            elif (folder / "processor_config.json").is_file():
                content = read_mapping(folder / "processor_config.json").get("image_processor") or {}
            side = int((content.get("size") or {}).get("longest_edge", cls.side))
            pad = content.get("pad_size") or {"height": side, "width": side}
            normalised, rescaled = content.get("do_normalize", True), content.get("do_rescale", True)
            preprocessing = cls(
                side,
                int(pad["height"]),
                255 * float(content.get("rescale_factor", 1 / 255)) if rescaled else 255.0,
                tuple(float(v) for v in content.get("image_mean", cls.mean)) if normalised else (0.0,) * 3,
                tuple(float(v) for v in content.get("image_std", cls.std)) if normalised else (1.0,) * 3,
                _INTERPOLATION[int(content.get("resample", 2))],
            )
            usable = (
                pad["height"] == pad["width"]
                and 0 < side <= preprocessing.padded
                and len(preprocessing.mean) == len(preprocessing.std) == 3
            )
            if (
                not usable
                or min(preprocessing.std) <= 0
                or not (content.get("do_resize", True) and content.get("do_pad", True))
            ):
                raise ValueError("no square image of three channels comes of it")
        except (OSError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"The preprocessing of the SAM {folder} is not one that is known here ({reason(error)}): restore its "
                "preprocessor_config.json."
            ) from error
        return preprocessing

    def resized(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of an image of this shape after resizing."""
        scale = self.side / max(shape)
        return int(shape[0] * scale + 0.5), int(shape[1] * scale + 0.5)

    def pixels(self, grey: Tensor) -> Tensor:
        """Images (N, rows, columns) in [0, 1] as the network takes them: (N, 3, padded, padded)."""
        size = self.resized((grey.shape[1], grey.shape[2]))
        fitted = functional.interpolate(grey[:, None], size, mode=self.interpolation, antialias=True)
        mean, std = (torch.tensor(v, device=grey.device)[:, None, None] for v in (self.mean, self.std))
        return functional.pad((self.scale * fitted - mean) / std, (0, self.padded - size[1], 0, self.padded - size[0]))

    def resized_back(self, masks: Tensor, shape: tuple[int, int]) -> Tensor:
        """Logits (N, 1, h, w) of the network, resized back to images of a shape: (N, 1, rows, columns)."""
        rows, columns = self.resized(shape)
        wide = functional.interpolate(masks, (self.padded, self.padded), mode="bilinear", align_corners=False)
        return functional.interpolate(wide[..., :rows, :columns], shape, mode="bilinear", align_corners=False)


class SamSegmenter:
    """A SAM on a device, which needs a prompt: `prompted` gives the segmenter of a structure.

    Satisfies `XAICLIPLib.segmentation.segmenter.Promptable`.

    Parameters
    ----------
    path
        A folder as ``SamModel.save_pretrained`` writes it, or ``hf-hub:`` and the id of one, such as
        ``hf-hub:facebook/sam-vit-base``, which transformers downloads on first use.
    device
        Where the network runs.
    trust
        Has no effect: no code of the folder is run.

    Raises
    ------
    InputError
        The package transformers is missing, or the model is missing, damaged or no SAM.
    """

    modality: str | None = None
    activation: Activation = "sigmoid"
    inputs: tuple[str, ...] = ("image",)

    def __init__(self, path: Path | str, device: torch.device, trust: bool = False) -> None:
        text = str(path)
        self.folder, self._revision = _download_from_hub(text) if text.startswith(HUB) else (Path(path), "unknown")
        self.name = text.removeprefix(HUB) if text.startswith(HUB) else self.folder.resolve().name
        self.device = device
        weights = _weights_in(self.folder)
        if not is_sam(self.folder) or weights is None:
            raise InputError(
                f"{path} is no SAM: give a folder with a config.json of the model type sam and {_WEIGHTS[0]}, or "
                f"{HUB} and the id of one."
            )
        self.weights = weights
        self.preprocessing = Preprocessing.of(self.folder)
        self.network = _network(self.folder, weights).to(device)
        input_side = self.network.config.vision_config.image_size
        if input_side != self.preprocessing.padded:
            raise InputError(
                f"The SAM {self.folder} takes images of {input_side} pixels and its preprocessing gives "
                f"{self.preprocessing.padded}: restore its preprocessor_config.json."
            )

    @property
    def labels(self) -> Mapping[int, str]:
        """Empty: the structure depends on the prompt."""
        return {}

    @property
    def provenance(self) -> Mapping[str, str]:
        """Name, revision on the hub, and the checksum of the weights."""
        return {
            "name": self.name,
            "kind": "SAM",
            "version": self._revision,
            "licence": "unknown",
            "sha256": sha256(self.weights),
        }

    def prompted(self, name: str, mask: sitk.Image, modality: str | None = None) -> PromptedSam:
        """The segmenter of one structure.

        Parameters
        ----------
        name
            The structure.
        mask
            Where it is, in the geometry of the image to come: on each axial slice the network is given the box around
            it and `BOX_MARGIN_MM`. Slices without it stay empty.
        modality
            Of the image, CT or MR; by default guessed from the intensities.
        """
        return PromptedSam(self, name, mask, modality)

    def window(self, shape: tuple[int, ...]) -> Tiling:
        """Every axial slice is a patch."""
        return slice_tiling(shape)

    def prepare(self, image: sitk.Image) -> Prepared:
        """Refuse: there is no prompt.

        Raises
        ------
        InputError
            Always.
        """
        raise _without_region(self.name)

    def logits(self, patches: Tensor) -> Tensor:
        """Refuse, as `prepare` does."""
        raise _without_region(self.name)

    def segment_boxes(self, grey: Tensor, boxes: Tensor) -> Tensor:
        """Segment one box on each of several images.

        Parameters
        ----------
        grey
            (N, rows, columns), in [0, 1].
        boxes
            (N, 4): the first column and row, the last column and row, in pixels.

        Returns
        -------
        Tensor
            (N, rows, columns): logits, by the same steps as ``SamProcessor``, ``SamModel`` with one mask, and
            ``post_process_masks``, except that grey values are not rounded. It can be differentiated.
        """
        rows, columns = grey.shape[1:]
        resized = self.preprocessing.resized((rows, columns))
        stretch = torch.tensor([resized[1] / columns, resized[0] / rows] * 2, device=boxes.device)
        # One by one: an image of 1024 pixels fills any device, and the attention of several fills its memory.
        pixels = self.preprocessing.pixels(grey).split(1)
        embeddings = torch.cat([self.network.vision_encoder(image).last_hidden_state for image in pixels])
        output = self.network(
            image_embeddings=embeddings, input_boxes=(boxes * stretch)[:, None], multimask_output=False
        )
        return self.preprocessing.resized_back(output.pred_masks[:, 0].float(), (rows, columns))[:, 0]


class PromptedSam:
    """A SAM that segments one structure, prompted by a mask. Satisfies `XAICLIPLib.segmentation.segmenter.Segmenter`.

    It has no attribute ``network``: its layers hold features of padded square images, which methods that use layers
    could not map to the scan.

    Parameters
    ----------
    sam
        The network.
    structure, mask, image_modality
        See `SamSegmenter.prompted`.
    """

    activation: Activation = "sigmoid"
    inputs: tuple[str, ...] = ("image",)

    def __init__(self, sam: SamSegmenter, structure: str, mask: sitk.Image, image_modality: str | None = None) -> None:
        self.sam, self.mask, self.image_modality = sam, mask, image_modality
        self.labels: Mapping[int, str] = {0: structure}

    @property
    def name(self) -> str:
        """That of the network."""
        return self.sam.name

    @property
    def modality(self) -> str | None:
        """That of the network."""
        return self.sam.modality

    @property
    def provenance(self) -> Mapping[str, str]:
        """That of the network."""
        return self.sam.provenance

    def window(self, shape: tuple[int, ...]) -> Tiling:
        """Every axial slice is a patch."""
        return slice_tiling(shape)

    def prepare(self, image: sitk.Image) -> Prepared:
        """Axial slices, grey in [0, 1], and the box of each slice as a held channel (1 within it).

        The pixels are square, of the smaller of the image's two spacings within axial slices. The slices have the
        image's distance, and at least `THINNEST_MM`. CT, as given or as guessed from the intensities, is windowed to
        `CT_WINDOW_HU`, anything else to the `PERCENTILES` of the body.

        Raises
        ------
        InputError
            The mask is empty within the image.
        """
        x, y, z = sitk.DICOMOrient(image, "LPS").GetSpacing()
        axial = imaging.standard_axial(image, (min(x, y), min(x, y), max(z, THINNEST_MM)))
        if (self.image_modality or imaging.guess_modality(image)) == "CT":
            low, high = CT_WINDOW_HU
        else:
            body = sitk.GetArrayFromImage(imaging.body_mask(axial)) != 0  # a view would outlive its image
            low, high = np.percentile(sitk.GetArrayViewFromImage(axial)[body], PERCENTILES)
        values = sitk.GetArrayFromImage(axial).transpose(2, 1, 0)
        grey = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)
        prepared = Prepared(torch.from_numpy(np.ascontiguousarray(grey))[None], imaging.ras_affine(axial))
        held = boxes_around(prepared.mask_from(self.mask).numpy(), BOX_MARGIN_MM / min(x, y))
        if not held.any():
            raise InputError(
                f"Nothing of the region that should show the {self.labels[0]} to {self.name} lies in this volume: "
                "choose another region."
            )
        return Prepared(prepared.tensor, prepared.affine, torch.from_numpy(held)[None])

    def logits(self, patches: Tensor) -> Tensor:
        """(N, 2, X, Y, 1), grey and box, to (N, 1, X, Y, 1). The network does not run on slices without a box."""
        grey, held = (channel[..., 0].transpose(1, 2) for channel in (patches[:, 0], patches[:, 1]))
        has_box = held.flatten(1).amax(1) > 0.5
        output = 0 * grey + BACKGROUND_LOGIT  # computed from grey: then a slice without a box has a gradient too, of 0
        if bool(has_box.any()):
            output[has_box] = self.sam.segment_boxes(grey[has_box], box_corners(held[has_box]))
        return output.transpose(1, 2)[:, None, ..., None].float()


def slice_tiling(shape: tuple[int, ...]) -> Tiling:
    """A tiling of a volume (X, Y, Z) with a patch for each slice across Z."""
    x, y, z = shape
    patches = tuple((slice(0, x), slice(0, y), slice(n, n + 1)) for n in range(z))
    return Tiling((x, y, z), ((0, 0),) * 3, patches, torch.ones(x, y, 1))


def boxes_around(mask: NDArray[np.bool_], margin: float) -> NDArray[np.float32]:
    """For each slice of a mask (X, Y, Z) across Z, 1 in the box around it with a margin in voxels; float32."""
    margin_voxels, held = int(np.ceil(margin)), np.zeros(mask.shape, np.float32)
    for z in np.flatnonzero(mask.any((0, 1))):
        inside = np.argwhere(mask[..., z])
        low, high = np.maximum(inside.min(0) - margin_voxels, 0), inside.max(0) + margin_voxels + 1
        held[low[0] : high[0], low[1] : high[1], z] = 1
    return held


def box_corners(held: Tensor) -> Tensor:
    """First column and row, last column and row, (N, 4), of boxes that are 1 in images (N, rows, columns)."""
    inside = (held > 0.5).int()
    ends = []
    for along in (inside.amax(1), inside.amax(2)):  # columns, rows
        ends.append((along.argmax(1), along.shape[1] - 1 - along.flip(1).argmax(1)))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1).to(held.dtype)


def _without_region(name: str) -> InputError:
    return InputError(
        f"The network {name} draws what it is pointed at and needs a region: give a prompt that the localizer finds, a "
        "region or a target."
    )


def _transformers(module: str) -> Any:
    """A module of transformers, which is optional and slow to import."""
    try:
        return import_without_operators(f"transformers.{module}")
    except ImportError as error:
        way = installing("transformers")
        raise InputError(f"SAM needs the package transformers ({reason(error)}): {way}.", way) from error


def _network(folder: Path, weights: Path) -> Any:
    """The network of a folder, with all its weights; from safetensors, or pickles that hold tensors alone."""
    content = read_mapping(folder / "config.json")
    if "quantization_config" in content:
        raise InputError(f"The SAM {folder} is quantised, which is not supported: give it in full precision.")
    configuration = _transformers("models.sam.configuration_sam").SamConfig
    kind = _transformers("models.sam.modeling_sam").SamModel
    try:
        # Not by from_pretrained: it takes adapters, kernels and quantisers by what names the folder has for them.
        network = kind(configuration(**_SETTINGS(content), attn_implementation="sdpa"))
        state = read_state(weights)
    except Exception as error:  # a damaged or hostile file fails in many ways
        raise InputError(f"The SAM {folder} does not load ({reason(error)}): get its files again.") from error
    shared = ("prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")
    for one, other in (shared, shared[::-1]):  # one tensor under two names, of which files may have just one
        if one not in state and other in state:
            state[one] = state[other]
    expected = network.state_dict()
    unfitting = sorted(name for name in expected if getattr(state.get(name), "shape", None) != expected[name].shape)
    if unfitting:  # they would stay random
        raise InputError(
            f"The weights {weights} are not those of the SAM that config.json describes ({len(unfitting)} do not fit, "
            f"such as {unfitting[0]}): get its files again."
        )
    network.load_state_dict({name: state[name] for name in expected})
    # Nothing is trained: without this, inference outside no_grad would keep every slice's graph in memory.
    return network.requires_grad_(False).eval()


def _download_from_hub(name: str) -> tuple[Path, str]:
    """The folder in which transformers keeps a model of the hub, downloaded if necessary, and its revision."""
    hub = _transformers("utils.hub")
    ident = name.removeprefix(HUB)
    try:
        config = Path(hub.cached_file(ident, "config.json"))
        revision = config.parent.name
        hub.cached_file(ident, _WEIGHTS[0], revision=revision)
        for optional in ("preprocessor_config.json", "processor_config.json"):
            hub.cached_file(ident, optional, revision=revision, _raise_exceptions_for_missing_entries=False)
    except Exception as error:  # no network, no such model, no safetensors
        raise InputError(
            f"The model {name} cannot be had ({reason(error)}): check its id and the network, or give the folder of "
            "one."
        ) from error
    return config.parent, revision


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
