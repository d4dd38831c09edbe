"""MONAI bundles as segmenters: network, preprocessing, sliding window, labels and weights all come from the bundle.

A bundle's configuration can run code. Only the parts that are needed (network, preprocessing, inferer) are built, by
`XAICLIPLib.segmentation.untrusted.configuration`, which runs no code. Where that refuses a part and the user trusts the
bundle, MONAI's own parser builds that part (`XAICLIPLib.segmentation.bundles.own_code`), which runs the code.

References
----------
MONAI bundle specification, https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data.meta_tensor import MetaTensor
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from monai.transforms import Compose
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.errors import TRUST, InputError, reason
from XAICLIPLib.segmentation.bundles.licence import licence_of
from XAICLIPLib.segmentation.bundles.metadata import (
    NoSegmentationError,
    named_packages,
    needed_packages,
    output_count,
    output_names,
    read_metadata,
    refuse_other_tasks,
    takes_pictures,
)
from XAICLIPLib.segmentation.bundles.own_code import MissingPackageError, OwnCode, TrustedConfiguration
from XAICLIPLib.segmentation.bundles.slices import SliceNetwork
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.sliding_window import SlidingWindow
from XAICLIPLib.segmentation.untrusted.configuration import READING_STEPS, Configuration
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.files import is_inside
from XAICLIPLib.system.mappings import UNREADABLE, read_mapping
from XAICLIPLib.system.memory import out_of_memory
from XAICLIPLib.system.weights import NUMPY_ARRAYS, load_into, load_plain

if TYPE_CHECKING:
    import SimpleITK as sitk

_CONFIGURATIONS = ("inference.json", "inference.yaml", "inference.yml")
_WEIGHTS = ("model.safetensors", "model.pt", "model.pth")
_NETWORK_KEYS = ("network_def", "network")
_PREPROCESSING_KEYS = ("preprocessing", "inference_transform", "pre_transforms", "test_preprocessing")


_INFERERS = ("SimpleInferer", "SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer")
"""MONAI's inferers that move a network as is done here."""

_LABEL_KEYS = ("label", "labels", "mask", "seg", "segmentation", "pred", "gt")
"""Keys of what a preprocessing reads beside the images."""

_WEIGHTS_NAMED = re.compile(r"(?<![\w.-])[\w.-]{1,250}\.(?:pt|pth|safetensors)\b")
"""The name of a file; not longer than file systems allow, and never sought from its middle, which would take long."""


class UnsupportedBundleError(NoSegmentationError):
    """A bundle whose network cannot be moved over a scan here, whether it is trusted or not."""


def is_bundle(folder: Path) -> bool:
    """Whether a folder is laid out as a MONAI bundle."""
    return (folder / "configs" / "metadata.json").is_file()


class BundleSegmenter:
    """A MONAI bundle on a device. Satisfies `XAICLIPLib.segmentation.segmenter.Segmenter`.

    Parameters
    ----------
    folder
        The bundle: ``configs/metadata.json``, ``configs/inference.json`` or ``.yaml``, ``models/model.pt``.
    device
        Where the network runs.
    trust
        Run the code of the bundle, where it cannot be built without it.
    labels
        Names of the output channels, from 0, in place of those that the metadata give.

    Raises
    ------
    NoSegmentationError
        It is a detector, a classifier, or another network that draws no structures.
    InputError
        A part is missing or unusable, or the configuration would run code that is not trusted.
    """

    def __init__(
        self, folder: Path, device: torch.device, trust: bool = False, labels: Mapping[int, str] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.device = device
        self._own_code: OwnCode | None = None
        self._metadata = read_metadata(self.folder)
        refuse_other_tasks(self._metadata, str(self.folder))
        content = {**self._read_configuration(), "bundle_root": str(self.folder)}
        configuration = Configuration(content, str(self.folder), self._load_from_bundle)
        self._refuse_inferer(configuration)
        network_key = self._first_key(content, _NETWORK_KEYS, "a network")
        preprocessing_key = self._first_key(content, _PREPROCESSING_KEYS, "its preprocessing")
        needed = [key for key in (network_key, preprocessing_key, "inferer") if key in content]
        build = dict.fromkeys(needed, configuration.build)
        trusted: TrustedConfiguration | None = None
        for key in needed:
            try:
                configuration.refuse_code(key)
            except InputError:
                if not trust:
                    raise
                if trusted is None:
                    self._own_code = OwnCode(self.folder)
                    trusted = TrustedConfiguration(content, self._own_code)
                build[key] = trusted.build
        self._labels, self.modality = self._read_channels(labels)
        self._keys, self._inputs = self._read_inputs(configuration, preprocessing_key)
        self._activation: Activation = self._find_activation(configuration)
        self.weights = self._find_weights(configuration, ConfigParser(deepcopy(content)) if trust else None)
        self.network = self._load_weights(self._build(build, network_key)).eval().to(device)
        self._transform = _without_reading(self._build(build, preprocessing_key))
        inferer = self._build(build, "inferer") if "inferer" in content else None
        if isinstance(inferer, SliceInferer):
            self.network = SliceNetwork(self.network, inferer.spatial_dim)
        try:
            self._window = self._sliding_window(inferer)
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"The bundle {self.folder} has a sliding window that cannot be moved ({_reason(error)}): correct "
                "roi_size, overlap, sigma_scale and cval of its inferer."
            ) from error

    @property
    def name(self) -> str:
        """The bundle's own name."""
        return str(self._metadata.get("name", self.folder.name))

    @property
    def labels(self) -> Mapping[int, str]:
        """Structure of each output channel, as ``channel_def`` says."""
        return self._labels

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the images that the network takes at once, as the input's ``channel_def`` says."""
        return self._inputs

    @property
    def activation(self) -> Activation:
        """From the bundle's postprocessing; where it does not say, softmax if channel 0 is the background."""
        return self._activation

    @property
    def window(self) -> SlidingWindow | None:
        """From the bundle's inferer; None where it takes whole volumes."""
        return self._window

    @property
    def spacing_mm(self) -> tuple[float | None, float | None, float | None]:
        """Voxel size to which the preprocessing resamples, along the patient's axes; None where it keeps the scan's."""
        spacing: tuple[float | None, float | None, float | None] = (None, None, None)
        for step in _steps(self._transform):
            pixdim = getattr(getattr(step, "spacing_transform", step), "pixdim", None)
            if pixdim is not None:
                sizes = [float(size) for size in np.ravel(pixdim)]
                sizes = sizes * 3 if len(sizes) == 1 else [*sizes, -1.0, -1.0][:3]
                x, y, z = (size if size > 0 else before for size, before in zip(sizes, spacing, strict=True))
                spacing = x, y, z
        return spacing

    @property
    def provenance(self) -> Mapping[str, str]:
        """Name, version, licence and the checksum of the weights."""
        return {
            "name": self.name,
            "kind": "MONAI bundle",
            "version": str(self._metadata.get("version", "unknown")),
            "licence": licence_of(self.folder, self._metadata),
            "sha256": sha256(self.weights),
        }

    def prepare(self, image: sitk.Image) -> Prepared:
        """Run the bundle's preprocessing on an image that is already in memory, of one component for each input.

        Raises
        ------
        InputError
            The network takes another number of images, or the preprocessing fails or loses the geometry.
        """
        count, expected = image.GetNumberOfComponentsPerPixel(), len(self._inputs)
        if count != expected:
            raise InputError(
                f"The network {self.name} takes {_images(expected)} of one patient at once "
                f"({', '.join(self._inputs)}), and {count} {'was' if count == 1 else 'were'} given: "
                f"give {'it' if expected == 1 else 'all of them, in this order'}."
            )
        try:
            with self._code_importable():
                prepared = self._prepared(imaging.as_metatensor(image))
        except Exception as error:  # whatever the bundle's transforms raise
            if out_of_memory(error):
                raise
            raise InputError(
                f"The preprocessing of the bundle {self.folder} fails on this volume ({_reason(error)})."
            ) from error
        clicks = self._click_channels
        if not isinstance(prepared, MetaTensor) or prepared.ndim != 4 or len(prepared) != expected + clicks:
            raise InputError(
                f"The preprocessing of the bundle {self.folder} does not give {_images(expected, '3D image')} with its "
                "geometry: choose another network."
            )
        affine = prepared.affine.cpu().numpy().astype(np.float64)
        values = prepared.as_tensor().to("cpu", torch.float32).contiguous()
        return Prepared(values[:expected], affine, values[expected:] if clicks else None)

    def _prepared(self, images: MetaTensor) -> Any:
        """The image that the preprocessing makes, of images (C, X, Y, Z) that are given as it reads them."""
        if len(self._keys) == 1:
            given: dict[str, Any] = {self._keys[0]: images}
        else:
            given = {key: images[[channel]] for channel, key in enumerate(self._keys)}
            given |= {f"{key}_meta_dict": dict(images.meta) for key in self._keys}  # as MONAI's older loaders leave
        data = self._transform(given)
        prepared, first = data["image" if "image" in data else self._keys[0]], data.get(self._keys[0])
        if len(self._keys) > 1 and isinstance(first, MetaTensor) and prepared.shape[1:] == first.shape[1:]:
            affine = prepared.affine.cpu() if isinstance(prepared, MetaTensor) else None
            # Code that joins the images may drop where they lie; what it joins lies where the first of them does.
            if affine is None or torch.equal(affine, torch.eye(4, dtype=affine.dtype)):
                values = prepared.as_tensor() if isinstance(prepared, MetaTensor) else torch.as_tensor(prepared)
                prepared = MetaTensor(values, affine=first.affine)
        return prepared

    def _code_importable(self) -> AbstractContextManager[None]:
        """Within the block, the code of a trusted bundle can import what it brings."""
        return nullcontext() if self._own_code is None else self._own_code.importable()

    def logits(self, patches: Tensor) -> Tensor:
        """(N, C, X, Y, Z) to (N, K, X, Y, Z).

        Raises
        ------
        InputError
            The network does not give one channel for each label.
        """
        with self._code_importable():
            output = self.network(patches)
        if isinstance(output, (list, tuple)):  # deep supervision: the first is at full resolution
            output = output[0]
        channels = output.shape[1] if isinstance(output, Tensor) and output.ndim == 5 else None
        if channels != len(self._labels):
            what = (
                type(output).__name__
                if channels is None
                else f"{channels} output channel{'' if channels == 1 else 's'}"
            )
            raise InputError(
                f"The network of the bundle {self.folder} gives {what} and its metadata name {len(self._labels)}: "
                "correct channel_def under network_data_format/outputs/pred in configs/metadata.json."
            )
        return output.float()

    def _read_configuration(self) -> dict[str, Any]:
        for name in _CONFIGURATIONS:
            path = self.folder / "configs" / name
            if path.is_file():
                try:
                    return read_mapping(path)
                except UNREADABLE as error:
                    raise InputError(f"The bundle's {path} cannot be read ({_reason(error)}).") from error
        raise InputError(f"The bundle {self.folder} has none of configs/{', configs/'.join(_CONFIGURATIONS)}.")

    def _read_channels(self, given: Mapping[int, str] | None) -> tuple[dict[int, str], str | None]:
        """Names of the output channels, and the modality, from the metadata."""
        try:
            labels = dict(given) if given else output_names(self._metadata)
            modality = ((self._metadata.get("network_data_format") or {}).get("inputs") or {}).get("image") or {}
            modality = modality.get("modality")
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise self._malformed(error) from error
        if not labels:
            count = output_count(self._metadata)
            channels = "its output channels" if count is None else f"its {count} output channels"
            raise InputError(
                f"The bundle {self.folder} does not name {channels}: add channel_def under "
                "network_data_format/outputs/pred in configs/metadata.json, or give the names with --labels.",
            )
        return labels, None if modality is None else str(modality)

    def _read_inputs(self, configuration: Configuration, section: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The keys under which the preprocessing reads the images, and the names of the images."""
        try:
            data_format = self._metadata.get("network_data_format") or {}
            image = (data_format.get("inputs") or {}).get("image") or {}
            named = {int(channel): str(name) for channel, name in (image.get("channel_def") or {}).items()}
            count = int(image.get("num_channels") or max(1, len(named)))
            if not 1 <= count <= 1000:
                raise ValueError(f"num_channels is {count}")
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise self._malformed(error) from error
        self._click_channels = 0
        steps = [str(part.get("_target_")) for part in configuration.mappings(section)]
        if any("Guidance" in step for step in steps) and count > 1:  # of the user's clicks, of which there are none
            self._click_channels, count, named = count - 1, 1, {}
        keys = [key for key in configuration.read_keys(section) if key.lower() not in _LABEL_KEYS]
        if len(keys) > 1 and "image" not in keys:
            if len(keys) != count:
                raise InputError(
                    f"The bundle {self.folder} reads {_images(len(keys))} ({', '.join(keys)}), and its metadata say "
                    f"{count}: correct num_channels under network_data_format/inputs/image in configs/metadata.json."
                )
            return tuple(keys), tuple(named[c] for c in range(count)) if len(named) == count else tuple(keys)
        key = keys[0] if len(keys) == 1 else "image"
        if count == 1:
            return (key,), (named.get(0, "image"),)
        return (key,), tuple(named.get(channel, f"image {channel + 1}") for channel in range(count))

    def _malformed(self, error: Exception) -> InputError:
        return InputError(
            f"The bundle {self.folder} does not describe its input and output as MONAI asks: "
            f"correct network_data_format in configs/metadata.json ({_reason(error)})."
        )

    def _first_key(self, content: Mapping[str, Any], keys: tuple[str, ...], what: str) -> str:
        for key in keys:
            if key in content:
                return key
        raise InputError(
            f"The bundle {self.folder} does not define {what}: its inference configuration has none of "
            f"{', '.join(keys)}."
        )

    def _build(self, build: Mapping[str, Callable[[str], Any]], key: str) -> Any:
        try:
            with _quiet_readers(), self._code_importable():
                return build[key](key)
        except InputError:
            raise
        except MissingPackageError as error:
            needed = needed_packages(self._metadata)
            says = f"; its metadata ask for {named_packages(needed)}" if needed else ""
            raise InputError(
                f"The code of the bundle {self.folder} needs the Python package {error.package}, which is not here: "
                f"install it where XAI-CLIP is installed{says}."
            ) from error
        except Exception as error:  # whatever the bundle's classes raise
            raise InputError(f"The bundle {self.folder} does not build ({key}: {_reason(error)}).") from error

    def _find_weights(self, configuration: Configuration, trusted: ConfigParser | None) -> Path:
        """The weights file: the one that the bundle's loader names, in ``models``; without a loader, the usual one."""
        models = self.folder / "models"
        load_paths = [
            part["load_path"]
            for section in ("checkpointloader", "handlers")
            for part in configuration.mappings(section)
            if "load_path" in part
        ]
        paths = [configuration.value(path) for path in load_paths]
        if trusted is not None and None in paths:
            with (
                suppress(Exception),
                self._code_importable(),
            ):  # whatever the bundle's code raises: the file names in its text are tried next
                paths = [trusted.get_parsed_content("checkpointloader::load_path")]
        known = all(isinstance(path, (str, Path)) for path in paths)
        texts = [str(path) for path in (paths if known else load_paths)]
        named = {name for text in texts for name in _WEIGHTS_NAMED.findall(text)}
        # The folder may hold the same weights in a safer format.
        choices = {name: (name, f"{Path(name).stem}.safetensors") for name in named}
        present = sorted(
            {next((choice for choice in choices[n] if (models / choice).is_file()), "") for n in named} - {""}
        )
        if len(present) > 1:
            raise InputError(
                f"The bundle {self.folder} chooses between {' and '.join(present)} by code: read it, and if you trust "
                f"it, {TRUST}.",
                TRUST,
            )
        if present:
            return models / present[0]
        if known and named:  # another file of the folder may fit the network, and not the preprocessing
            raise InputError(
                f"The bundle {self.folder} lacks its weights: put {' or '.join(sorted(named))} into its models folder."
            )
        for name in _WEIGHTS:
            if (models / name).is_file():
                return models / name
        raise InputError(f"The bundle {self.folder} has no weights: put model.pt into its models folder.")

    def _load_from_bundle(self, named: str) -> Any:
        """Tensors and arrays that a configuration loads, such as the architecture that a search has found."""
        inside = [path for path in (Path(named), self.folder / named) if is_inside(path, self.folder)]
        # Bundles may name the path on their authors' machine: the file is also searched where bundles keep models.
        for path in (*inside, self.folder / "models" / Path(named).name):
            if path.is_file():
                try:
                    return load_plain(path, NUMPY_ARRAYS)
                except Exception as error:  # a damaged or hostile file fails in many ways
                    raise InputError(
                        f"The bundle's {path} is damaged or holds more than tensors and arrays: get the file again."
                    ) from error
        raise InputError(
            f"The bundle {self.folder} lacks a file that its configuration loads: put {Path(named).name} into its "
            "models folder."
        )

    def _refuse_inferer(self, configuration: Configuration) -> None:
        """Refuse a bundle whose network cannot be moved over a scan here, before it is asked to be trusted."""
        target = next((str(p["_target_"]) for p in configuration.mappings("inferer") if "_target_" in p), None)
        name = (target or "").rpartition(".")[2]
        if target is not None and (name not in _INFERERS or not ("." not in target or target.startswith("monai."))):
            raise _unsupported_inferer(self.folder, target)
        size = takes_pictures(self._metadata)
        if size is not None and name != SliceInferer.__name__:
            raise UnsupportedBundleError(
                f"The bundle {self.folder} has a network for single pictures of {size}, and nothing that moves it "
                "through a scan: choose one for 3D volumes, or one with a SliceInferer."
            )

    def _load_weights(self, network: Any) -> torch.nn.Module:
        if not isinstance(network, torch.nn.Module):
            raise InputError(f"The bundle {self.folder} does not define a network, but {type(network).__name__}.")
        return load_into(network, self.weights, "the bundle's network")

    def _sliding_window(self, inferer: Any) -> SlidingWindow | None:
        if inferer is None or isinstance(inferer, SimpleInferer):
            return None
        if not isinstance(inferer, SlidingWindowInferer):  # made by an expression
            raise _unsupported_inferer(self.folder, type(inferer).__name__)
        roi = (inferer.roi_size,) * 3 if isinstance(inferer.roi_size, int) else tuple(inferer.roi_size)
        if isinstance(inferer, SliceInferer):
            sides = (inferer.roi_size,) * 2 if isinstance(inferer.roi_size, int) else roi
            if len(sides) != 2 or inferer.spatial_dim not in (0, 1, 2):
                raise ValueError("a SliceInferer has a roi_size of two axes, and a spatial_dim from 0 to 2")
            roi = (*sides[: inferer.spatial_dim], 1, *sides[inferer.spatial_dim :])
        if len(roi) != 3:
            raise InputError(f"The bundle {self.folder} has a {len(roi)}D network: choose one for 3D volumes.")
        overlap, sigma = inferer.overlap, inferer.sigma_scale
        return SlidingWindow(
            roi_size=tuple(int(s or 0) for s in roi),
            overlap=float(overlap) if isinstance(overlap, (int, float)) else tuple(float(o) for o in overlap),
            mode="gaussian" if str(inferer.mode.value) == "gaussian" else "constant",
            sigma_scale=float(sigma) if isinstance(sigma, (int, float)) else tuple(float(s) for s in sigma),
            padding_value=float(inferer.cval),
            padding_mode=str(getattr(inferer.padding_mode, "value", inferer.padding_mode)),
        )

    def _find_activation(self, configuration: Configuration) -> Activation:
        named = {
            name
            for part in configuration.mappings("postprocessing")
            for name in ("sigmoid", "softmax", "argmax")
            if _is_on(configuration.value(part.get(name)))
        }
        if named:
            return "sigmoid" if "sigmoid" in named else "softmax"
        return "softmax" if self._labels.get(0, "").lower() in ("background", "bg") else "sigmoid"


def _unsupported_inferer(folder: Path, name: str) -> UnsupportedBundleError:
    return UnsupportedBundleError(
        f"The bundle {folder} moves its network by {name}, which is not supported: "
        f"choose one with {', '.join(_INFERERS[:-1])} or {_INFERERS[-1]}."
    )


def _steps(transform: Any) -> Iterator[Any]:
    """The transforms of a preprocessing, one by one."""
    if isinstance(transform, Compose):
        for step in transform.transforms:
            yield from _steps(step)
    else:
        yield transform


def _images(count: int, what: str = "image") -> str:
    return f"one {what}" if count == 1 else f"{count} {what}s"


def _is_on(flag: Any) -> bool:
    return flag is True or (isinstance(flag, list) and True in flag)


@contextmanager
def _quiet_readers() -> Iterator[None]:
    """Silence MONAI's warnings about missing DICOM decoders: its readers are built with a bundle but never used."""
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodec")
            yield
    finally:
        logger.setLevel(level)


def _without_reading(transform: Any) -> Callable[[Any], Any]:
    """The preprocessing without the steps that read files: the image is in memory, channel first."""
    if transform is None or isinstance(transform, READING_STEPS):
        return Compose([])
    if isinstance(transform, (list, tuple)):
        transform = Compose(list(transform))
    if isinstance(transform, Compose):  # changed in place, to keep its other settings, such as lazy resampling
        kept = [step for step in transform.transforms if not isinstance(step, READING_STEPS)]
        transform.transforms = tuple(_without_reading(s) if isinstance(s, Compose) else s for s in kept)
    return transform


def _reason(error: BaseException) -> str:
    """What the first cause of an error says, on one line that a person can read."""
    while error.__cause__ is not None:  # MONAI wraps what its transforms raise
        error = error.__cause__
    return reason(error)
