"""MONAI bundles as segmenters: network, preprocessing, sliding window, labels and weights all come from the bundle.

A bundle's configuration can run code. Only the parts that are needed (network, preprocessing, inferer) are built, by
`XAICLIPLib.segmentation.untrusted.configuration`, which runs no code. Where that fails and the user trusts the bundle,
MONAI's own parser is used, which runs the code.

References
----------
MONAI bundle specification, https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data.meta_tensor import MetaTensor
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from monai.transforms import Compose
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.errors import TRUST, InputError, reason
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.sliding_window import SlidingWindow
from XAICLIPLib.segmentation.untrusted.configuration import READING_STEPS, Configuration
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.mappings import read_mapping
from XAICLIPLib.system.memory import out_of_memory
from XAICLIPLib.system.weights import NUMPY_ARRAYS, load_into, load_plain

if TYPE_CHECKING:
    import SimpleITK as sitk

_CONFIGURATIONS = ("inference.json", "inference.yaml", "inference.yml")
_WEIGHTS = ("model.safetensors", "model.pt", "model.pth")
_NETWORK_KEYS = ("network_def", "network")
_PREPROCESSING_KEYS = ("preprocessing", "inference_transform", "pre_transforms", "test_preprocessing")
_UNREADABLE = (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError)

_WEIGHTS_NAMED = re.compile(r"[\w.-]+\.(?:pt|pth|safetensors)\b")


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
        Run the code in the bundle's configuration, where it cannot be built without it.

    Raises
    ------
    InputError
        A part is missing or unusable, or the configuration would run code that is not trusted.
    """

    def __init__(self, folder: Path, device: torch.device, trust: bool = False) -> None:
        self.folder = Path(folder)
        self.device = device
        self._metadata = self._read_metadata()
        content = {**self._read_configuration(), "bundle_root": str(self.folder)}
        network_key = self._first_key(content, _NETWORK_KEYS, "a network")
        preprocessing_key = self._first_key(content, _PREPROCESSING_KEYS, "its preprocessing")
        configuration = Configuration(content, str(self.folder), self._load_from_bundle)
        needed = [key for key in (network_key, preprocessing_key, "inferer") if key in content]
        make: Callable[[str], Any] = configuration.build
        try:
            for key in needed:
                configuration.refuse_code(key)
        except InputError:
            if not trust:
                raise
            make = ConfigParser(deepcopy(content)).get_parsed_content
        self._labels, self._inputs, self.modality = self._read_channels()
        self._activation: Activation = self._find_activation(configuration)
        self.weights = self._find_weights(configuration, ConfigParser(deepcopy(content)) if trust else None)
        self.network = self._load_weights(self._build(make, network_key)).eval().to(device)
        self._transform = _without_reading(self._build(make, preprocessing_key))
        inferer = self._build(make, "inferer") if "inferer" in content else None
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
            "licence": str(self._metadata.get("license", "unknown")),
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
            prepared = self._transform({"image": imaging.as_metatensor(image)})["image"]
        except Exception as error:  # whatever the bundle's transforms raise
            if out_of_memory(error):
                raise
            raise InputError(
                f"The preprocessing of the bundle {self.folder} fails on this volume ({_reason(error)})."
            ) from error
        if not isinstance(prepared, MetaTensor) or prepared.ndim != 4 or len(prepared) != expected:
            raise InputError(
                f"The preprocessing of the bundle {self.folder} does not give {_images(expected, '3D image')} with its "
                "geometry: choose another network."
            )
        affine = prepared.affine.cpu().numpy().astype(np.float64)
        return Prepared(prepared.as_tensor().to("cpu", torch.float32).contiguous(), affine)

    def logits(self, patches: Tensor) -> Tensor:
        """(N, C, X, Y, Z) to (N, K, X, Y, Z).

        Raises
        ------
        InputError
            The network does not give one channel for each label.
        """
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

    def _read_metadata(self) -> dict[str, Any]:
        path = self.folder / "configs" / "metadata.json"
        try:
            return read_mapping(path)
        except _UNREADABLE as error:
            raise InputError(f"{self.folder} is no MONAI bundle: {path} cannot be read ({_reason(error)}).") from error

    def _read_configuration(self) -> dict[str, Any]:
        for name in _CONFIGURATIONS:
            path = self.folder / "configs" / name
            if path.is_file():
                try:
                    return read_mapping(path)
                except _UNREADABLE as error:
                    raise InputError(f"The bundle's {path} cannot be read ({_reason(error)}).") from error
        raise InputError(f"The bundle {self.folder} has none of configs/{', configs/'.join(_CONFIGURATIONS)}.")

    def _read_channels(self) -> tuple[dict[int, str], tuple[str, ...], str | None]:
        """Names of the output channels and of the input channels, and the modality, from the metadata."""
        try:
            data_format = self._metadata.get("network_data_format") or {}
            image = (data_format.get("inputs") or {}).get("image") or {}
            channels = ((data_format.get("outputs") or {}).get("pred") or {}).get("channel_def") or {}
            labels = {int(channel): str(name) for channel, name in channels.items()}
            named = {int(channel): str(name) for channel, name in (image.get("channel_def") or {}).items()}
            count = int(image.get("num_channels") or max(1, len(named)))
            if not 1 <= count <= 1000:
                raise ValueError(f"num_channels is {count}")
            modality = image.get("modality")
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"The bundle {self.folder} does not describe its input and output as MONAI asks: "
                f"correct network_data_format in configs/metadata.json ({_reason(error)})."
            ) from error
        if not labels:
            raise InputError(
                f"The bundle {self.folder} does not name its output channels: "
                "add channel_def under network_data_format/outputs/pred in configs/metadata.json."
            )
        if count == 1:
            inputs: tuple[str, ...] = (named.get(0, "image"),)
        else:
            inputs = tuple(named.get(channel, f"image {channel + 1}") for channel in range(count))
        return labels, inputs, None if modality is None else str(modality)

    def _first_key(self, content: Mapping[str, Any], keys: tuple[str, ...], what: str) -> str:
        for key in keys:
            if key in content:
                return key
        raise InputError(
            f"The bundle {self.folder} does not define {what}: its inference configuration has none of "
            f"{', '.join(keys)}."
        )

    def _build(self, make: Callable[[str], Any], key: str) -> Any:
        try:
            with _quiet_readers():
                return make(key)
        except InputError:
            raise
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
            with suppress(Exception):  # whatever the bundle's code raises: the file names in its text are tried next
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
        inside = [path for path in (Path(named), self.folder / named) if _is_inside(path, self.folder)]
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

    def _load_weights(self, network: Any) -> torch.nn.Module:
        if not isinstance(network, torch.nn.Module):
            raise InputError(f"The bundle {self.folder} does not define a network, but {type(network).__name__}.")
        return load_into(network, self.weights, "the bundle's network")

    def _sliding_window(self, inferer: Any) -> SlidingWindow | None:
        if inferer is None or isinstance(inferer, SimpleInferer):
            return None
        kind = type(inferer).__name__
        if not isinstance(inferer, SlidingWindowInferer) or isinstance(inferer, SliceInferer):
            raise InputError(
                f"The bundle {self.folder} moves its network by {kind}, which is not supported: "
                "choose one with SlidingWindowInferer or SimpleInferer."
            )
        roi = (inferer.roi_size,) * 3 if isinstance(inferer.roi_size, int) else tuple(inferer.roi_size)
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


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder, with links and ``..`` resolved."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


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
