"""Networks trained by nnU-Net as segmenters: its preprocessing, network and sliding window, from a trained folder.

All parts are nnU-Net's except its predictor, which hides the tiles and unpickles anything in a checkpoint.

References
----------
Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature Methods
2021.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from XAICLIPLib.errors import InputError, reason
from XAICLIPLib.imaging import ras_affine
from XAICLIPLib.segmentation.networks.nnunet_folder import (
    find_trainer,
    import_nnunet,
    read_folder,
    refuse_foreign_classes,
    without_output,
)
from XAICLIPLib.segmentation.networks.trained_folders import is_nnunet
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.sliding_window import Tiling
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.memory import out_of_memory

__all__ = ["NnUNetSegmenter", "closest_canonical", "is_nnunet"]

_READERS = ("SimpleITKIO", "NibabelIO", "Tiff3DIO")
"""nnU-Net's readers that keep the file's order of axes."""

_REORIENTING = ("NibabelIOWithReorient", "SimpleITKIOWithReorient")

_MR = re.compile(r"\b(mri?|t1\w*|t2\w*|flair|dwi|adc|swi|pdw?|dce|gre|dixon)\b")
_CT = re.compile(r"\b(cb)?ct(a|norm\w*)?\b")


class NnUNetSegmenter:
    """A network trained by nnU-Net. Satisfies `XAICLIPLib.segmentation.segmenter.Segmenter`.

    Parameters
    ----------
    path
        The trained folder, or one of its folds (`nnunet_folder.read_folder`).
    device
        Where the network runs.
    trust
        Import whatever classes the plans name, and assume that an unknown trainer trains the plans' network.
        The checkpoint is never trusted to run code.
    tile_step_size
        Distance of the tiles as a share of the patch: nnU-Net's default.

    Raises
    ------
    InputError
        A part is missing or unusable, is not nnU-Net's own and not trusted, or the network is the second stage of a
        cascade.
    """

    def __init__(self, path: Path, device: torch.device, trust: bool = False, tile_step_size: float = 0.5) -> None:
        import_nnunet()
        self.folder = read_folder(path)
        self.device = device
        self.tile_step_size = tile_step_size
        try:
            with without_output(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about plans in an older format, which are supported
                self._read_plans(trust)
                self.network = self._build(trust)
        except InputError:
            raise
        except Exception as error:  # nnU-Net raises many errors for malformed plans
            raise InputError(
                f"The trained folder {self.folder.path} does not build ({type(error).__name__}: {reason(error)})."
            ) from error
        self._sha256 = sha256(self.folder.checkpoint)

    @property
    def name(self) -> str:
        """Dataset and configuration."""
        return f"{self._plans.dataset_name} {self.folder.configuration}"

    @property
    def modality(self) -> str | None:
        """From the names of the channels; None where these do not name one."""
        modalities = {m for m in map(_modality, self._channels) if m}
        return ", ".join(sorted(modalities)) or None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the images that the network takes together."""
        return self._channels if len(self._channels) > 1 else ("image",)

    @property
    def labels(self) -> Mapping[int, str]:
        """Structure, or region, of each output channel."""
        return self._labels

    @property
    def activation(self) -> Activation:
        """Sigmoid where the network was trained on regions, which may overlap."""
        return "sigmoid" if self._label_manager.has_regions else "softmax"

    @property
    def window(self) -> Callable[[tuple[int, ...]], Tiling]:
        """nnU-Net's sliding window."""
        return self._tiling

    @property
    def spacing_mm(self) -> tuple[float | None, float | None, float | None]:
        """That of the plans; None across the slices of a 2D network."""
        z, y, x = [None, None, *self._configuration.spacing][-3:]
        return x, y, z

    @property
    def provenance(self) -> Mapping[str, str]:
        """What was loaded, and which parts of nnU-Net's usual inference are left out."""
        dataset = self.folder.dataset
        return {
            "name": self.name,
            "kind": "nnU-Net",
            "version": str(dataset.get("release", "unknown")),
            "licence": "unknown",  # dataset.json names the licence of the images only
            "data_licence": str(dataset.get("licence", dataset.get("license", "unknown"))),
            "sha256": self._sha256,
            "fold": self.folder.fold,
            "checkpoint": self.folder.checkpoint.name,
            "trainer": self.folder.trainer,
            "plans": str(self._plans.plans_name),
            "tile_step_size": f"{self.tile_step_size:g}",
            "mirroring": "off (nnU-Net's own prediction averages up to 8 mirrored ones, at as many times the cost)",
            "software": f"nnunetv2 {importlib.metadata.version('nnunetv2')}",
        }

    def prepare(self, image: sitk.Image) -> Prepared:
        """Run nnU-Net's preprocessing on an image that is already in memory.

        Raises
        ------
        InputError
            Not as many channels as the network takes, or the preprocessing fails.
        """
        reader = self._plans.plans["image_reader_writer"]
        if reader == "NibabelIOWithReorient":
            image = closest_canonical(image)
        elif reader == "SimpleITKIOWithReorient":
            image = sitk.DICOMOrient(image, "RAS")
        return self.prepare_array(channels_first(image), ras_affine(image), image.GetSpacing())

    def prepare_array(
        self, values: NDArray[np.float32], affine: NDArray[np.float64], spacing_mm: Sequence[float]
    ) -> Prepared:
        """Preprocess an array (C, X, Y, Z) with its ``affine`` and the ``spacing_mm`` that nnU-Net shall use."""
        if len(values) != len(self._channels):
            raise InputError(
                f"The network {self.name} takes {_images(len(self._channels))} at once ({', '.join(self._channels)}), "
                f"and {len(values)} came: give one for each, on one grid."
            )
        properties: dict[str, Any] = {"spacing": [float(s) for s in spacing_mm][::-1]}
        preprocessor = self._configuration.preprocessor_class(verbose=False)
        try:
            with without_output():
                preprocessed = preprocessor.run_case_npy(
                    values.transpose(0, 3, 2, 1),  # nnU-Net's axes are z, y, x
                    None,
                    properties,
                    self._plans,
                    self._configuration,
                    self.folder.dataset,
                )[0]
        except Exception as error:  # whatever nnU-Net's preprocessing raises
            if out_of_memory(error):
                raise
            raise InputError(f"The preprocessing of {self.name} fails on this volume ({reason(error)}).") from error
        tensor = torch.from_numpy(np.array(preprocessed, np.float32, order="C"))
        return Prepared(tensor, self._affine(affine, properties, tensor.shape[1:]))

    def logits(self, patches: Tensor) -> Tensor:
        """(N, C, *size) to (N, K, *size); a 2D network takes slices, of size (1, Y, X)."""
        if self._flat:
            output: Tensor = self.network(patches.squeeze(2)).unsqueeze(2)
        else:
            output = self.network(patches)
        return output.float()

    def _read_plans(self, trust: bool) -> None:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        folder = self.folder
        self._plans = PlansManager(folder.plans)
        self._configuration = self._plans.get_configuration(folder.configuration)
        if self._configuration.previous_stage_name is not None:
            raise InputError(
                f"The network in {folder.path} is the second stage of a cascade, which is not supported: give a "
                "trained 3d_fullres, 3d_lowres or 2d configuration."
            )
        reader = self._plans.plans["image_reader_writer"]
        if reader not in (*_READERS, *_REORIENTING):
            raise InputError(f"The network in {folder.path} reads images by {reader}: only 3D volumes are supported.")
        if not trust:
            refuse_foreign_classes(folder, self._configuration.configuration)
        channels = folder.dataset.get("channel_names") or folder.dataset["modality"]
        self._channels = tuple(str(name) for _, name in sorted(channels.items(), key=lambda item: int(item[0])))
        self._label_manager = self._plans.get_label_manager(folder.dataset)
        self._labels = _names(folder.dataset["labels"], self._label_manager)
        self._flat = len(self._configuration.patch_size) == 2

    def _build(self, trust: bool) -> torch.nn.Module:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        configuration = self._configuration
        architecture = (
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
        )
        channels = len(self._channels), self._label_manager.num_segmentation_heads
        trainer = find_trainer(self.folder, trust)
        if trainer is None:
            network = get_network_from_plans(*architecture, *channels, deep_supervision=False)
        elif "plans_manager" in inspect.signature(trainer.build_network_architecture).parameters:
            network = trainer.build_network_architecture(
                self._plans, configuration, *channels, enable_deep_supervision=False
            )
        else:  # as before nnU-Net 2.7
            network = trainer.build_network_architecture(*architecture, *channels, enable_deep_supervision=False)
        try:
            network.load_state_dict(self.folder.weights)
        except RuntimeError as error:
            raise InputError(
                f"The weights {self.folder.checkpoint} do not belong to the network of the plans ({reason(error)})."
            ) from error
        ready: torch.nn.Module = network.requires_grad_(False).eval().to(self.device)
        return ready

    def _tiling(self, shape: tuple[int, ...]) -> Tiling:
        """The tiles of nnU-Net's predictor: padded around the middle, evenly spaced, weighted in half precision."""
        from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

        size = tuple(int(s) for s in self._configuration.patch_size)
        weight = compute_gaussian(size, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu")).float()
        if self._flat:
            size, weight = (1, *size), weight[None]
        missing = [max(p - s, 0) for p, s in zip(size, shape, strict=True)]
        padding = tuple((m // 2, m - m // 2) for m in missing)
        padded = [s + m for s, m in zip(shape, missing, strict=True)]
        moving = slice(1, None) if self._flat else slice(None)
        steps = compute_steps_for_sliding_window(tuple(padded[moving]), size[moving], self.tile_step_size)
        if self._flat:
            steps = [list(range(padded[0])), *steps]
        patches = tuple(
            tuple(slice(start, start + length) for start, length in zip(starts, size, strict=True))
            for starts in ((a, b, c) for a in steps[0] for b in steps[1] for c in steps[2])
        )
        return Tiling(shape=tuple(int(s) for s in shape), padding=padding, patches=patches, weight=weight)

    def _affine(
        self, affine: NDArray[np.float64], properties: Mapping[str, Any], shape: Sequence[int]
    ) -> NDArray[np.float64]:
        """The affine of the preprocessed volume: cropped, transposed, and resampled with the outer edges kept."""
        result = affine.copy()
        cut = properties["shape_after_cropping_and_before_resampling"]
        start = np.zeros(3)
        for axis, source in enumerate(self._plans.transpose_forward):
            scale = cut[axis] / shape[axis]
            result[:3, axis] = affine[:3, 2 - source] * scale
            start[2 - source] = properties["bbox_used_for_cropping"][axis][0] + (scale - 1) / 2
        result[:3, 3] = affine[:3, :3] @ start + affine[:3, 3]
        return result


def closest_canonical(image: sitk.Image) -> sitk.Image:
    """An image with its axes reordered and flipped to be closest to right, anterior, superior, as nibabel does it."""
    from nibabel.orientations import io_orientation  # comes with nnU-Net

    orientation = io_orientation(ras_affine(image))
    order = [int(axis) for axis in np.argsort(orientation[:, 0])]
    flips = [bool(orientation[axis, 1] < 0) for axis in order]
    return sitk.Flip(sitk.PermuteAxes(image, order), flips, False)


def channels_first(image: sitk.Image) -> NDArray[np.float32]:
    """The values of an image as (C, X, Y, Z)."""
    values = sitk.GetArrayViewFromImage(image).astype(np.float32)
    if image.GetNumberOfComponentsPerPixel() == 1 and values.ndim == 3:
        values = values[..., None]
    return values.transpose(3, 2, 1, 0)


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number} images"


def _names(labels: Mapping[str, Any], manager: Any) -> dict[int, str]:
    """Names of the output channels; those of regions where there are any, without the background."""
    if manager.has_regions:
        kept = [n for n, r in labels.items() if n != "ignore" and any(np.atleast_1d(r))]
        return dict(enumerate(kept))
    values = {int(np.atleast_1d(value)[0]): name for name, value in labels.items() if name != "ignore"}
    return {channel: values[int(value)] for channel, value in enumerate(manager.all_labels)}


def _modality(channel: str) -> str | None:
    words = channel.lower().replace("_", " ")
    if _CT.search(words):
        return "CT"
    return "MR" if _MR.search(words) else None
