"""Networks with a separate description: TorchScript, a MONAI network with its checkpoint, an object in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from monai.transforms import (
    Compose,
    NormalizeIntensity,
    Orientation,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    Spacing,
)
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError, reason
from XAICLIPLib.segmentation.networks.description import Description, Intensity
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.sliding_window import SlidingWindow
from XAICLIPLib.segmentation.untrusted.configuration import Configuration
from XAICLIPLib.segmentation.untrusted.torchscript import is_torchscript, read_torchscript
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.weights import load_into

if TYPE_CHECKING:
    import SimpleITK as sitk


class Predictor(Protocol):
    """The interface that a network in Python needs at least; `from_object` turns it into a segmenter."""

    @property
    def description(self) -> Description | Mapping[str, Any]:
        """What the network's files do not say, with the keys of `XAICLIPLib.segmentation.networks.description`."""
        ...

    def predict(self, batch: Tensor) -> Tensor:
        """(N, C, X, Y, Z) to logits (N, K, X, Y, Z), on the device of ``batch``."""
        ...


DESCRIPTIONS = (".yaml", ".yml")
WEIGHTS = (".ts", ".pt", ".pth", ".safetensors")


class DescribedSegmenter:
    """A network and its description. Satisfies `XAICLIPLib.segmentation.segmenter.Segmenter`.

    Parameters
    ----------
    description
        What the network's files do not say.
    forward
        Patches (N, C, X, Y, Z) to logits (N, K, X, Y, Z), on the device of the patches.
    kind
        Its kind, for the record of an explanation.
    checksum
        SHA-256 of its weights, empty where there is no file.
    network
        The module behind ``forward``, if any: gradient methods use its layers.
    """

    def __init__(
        self,
        description: Description,
        forward: Callable[[Tensor], Any],
        kind: str,
        checksum: str = "",
        network: torch.nn.Module | None = None,
    ) -> None:
        self.description = description
        self._forward, self._kind, self._checksum = forward, kind, checksum
        if network is not None:
            self.network = network
        self._transform = preprocessing(description)

    @property
    def name(self) -> str:
        """From the description."""
        return self.description.name

    @property
    def modality(self) -> str | None:
        """From the description."""
        return self.description.modality

    @property
    def labels(self) -> Mapping[int, str]:
        """From the description."""
        return self.description.labels

    @property
    def activation(self) -> Activation:
        """From the description."""
        return self.description.activation

    @property
    def inputs(self) -> tuple[str, ...]:
        """From the description."""
        return self.description.inputs

    @property
    def window(self) -> SlidingWindow | None:
        """From the description."""
        return self.description.window

    @property
    def spacing_mm(self) -> tuple[float | None, float | None, float | None]:
        """From the description; None where the scan's own is kept."""
        return self.description.spacing_mm or (None, None, None)

    @property
    def provenance(self) -> Mapping[str, str]:
        """Name, version, licence and the checksum of the weights."""
        return {
            "name": self.name,
            "kind": self._kind,
            "version": self.description.version,
            "licence": self.description.licence,
            "sha256": self._checksum,
        }

    def prepare(self, image: sitk.Image) -> Prepared:
        """Orient, resample and scale an image as the description says."""
        prepared = self._transform(imaging.as_metatensor(image))
        affine = prepared.affine.cpu().numpy().astype(np.float64)
        return Prepared(prepared.as_tensor().to("cpu", torch.float32).contiguous(), affine)

    def logits(self, patches: Tensor) -> Tensor:
        """(N, C, X, Y, Z) to (N, K, X, Y, Z).

        Raises
        ------
        InputError
            The network's input or output is not as its description says.
        """
        try:
            output = self._forward(patches)
        except RuntimeError as error:
            if not _is_shape(error):
                raise
            raise InputError(
                f"The network {self.name} does not take {patches.shape[1]} channels of "
                f"{' × '.join(map(str, patches.shape[2:]))} voxels ({reason(error)}): correct inputs or window in "
                "its description."
            ) from error
        if isinstance(output, (list, tuple)):  # deep supervision: the first is at full resolution
            output = output[0]
        expected = (len(patches), len(self.labels), *patches.shape[2:])
        if not isinstance(output, Tensor) or tuple(output.shape) != expected:
            output_kind = f"a tensor of {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"The network {self.name} gives {output_kind}, and by its description it should give {expected}, one "
                "channel for each label: correct labels or window in its description."
            )
        return output.float()


def preprocessing(description: Description) -> Compose:
    """The transforms that bring a MetaTensor (C, X, Y, Z) into the network's input space."""
    steps: list[Any] = [Orientation(axcodes=description.orientation)]
    if description.spacing_mm is not None:
        steps.append(Spacing(pixdim=description.spacing_mm, mode="bilinear"))
    return Compose([*steps, *_scaling(description.intensity)])


def _scaling(intensity: Intensity) -> list[Any]:
    (low, high), (to_low, to_high) = intensity.bounds, intensity.to
    if intensity.scaling == "range":
        return [ScaleIntensityRange(low, high, to_low, to_high, clip=True)]
    if intensity.scaling == "percentiles":
        return [ScaleIntensityRangePercentiles(low, high, to_low, to_high, clip=True, channel_wise=True)]
    if intensity.scaling == "none":
        return []
    return [NormalizeIntensity(nonzero=intensity.scaling == "nonzero z-score", channel_wise=True)]


def is_described(path: Path) -> bool:
    """Whether a path is a description, a folder with exactly one, or weights with a description beside them."""
    return _description_file(path) is not None


def is_weights_file(path: Path) -> bool:
    """Whether a path is a file of weights, by its ending: without a description `load_described` refuses it."""
    return path.suffix in WEIGHTS and path.is_file()


def load_described(path: Path, device: torch.device, trust: bool = False) -> DescribedSegmenter:
    """A network from its description, its weights with the description beside them, or a folder with both.

    Parameters
    ----------
    path
        ``net.yaml``; or ``net.ts``, ``net.pt``, ``net.pth``, ``net.safetensors`` with ``net.yaml`` beside it; or the
        folder.
    device
        Where it runs.
    trust
        Run TorchScript that reads or writes files.

    Raises
    ------
    InputError
        A file is missing or cannot be used.
    """
    description_file = _description_file(path)
    if description_file is None:
        raise InputError(
            f"{path} says nothing of its preprocessing and labels: put a description beside it, "
            f"{path.with_suffix('.yaml').name} (see the README, Your own network)."
        )
    description = Description.read(description_file)
    named = description.torchscript or description.weights
    file = description_file.parent / named if named else path
    if not file.is_file() or file == description_file:
        raise InputError(
            f"The description {description_file} names no weights that are there ({named or 'none'}): give "
            "torchscript, or network and weights."
        )
    if description.network is None and is_torchscript(file):
        program = read_torchscript(file, device, trust)
        return DescribedSegmenter(description, program, "TorchScript", sha256(file), program)
    if description.network is None:
        raise InputError(f"{file} holds weights without a network: name the network in {description_file}.")
    network = load_into(_monai_network(description, str(description_file)), file, f"the network {description.network}")
    return DescribedSegmenter(description, network.to(device), "MONAI network", sha256(file), network)


def from_object(network_object: Any) -> DescribedSegmenter:
    """A network from any object with ``predict(batch) -> logits`` and a ``description``.

    Parameters
    ----------
    given
        ``predict`` takes a tensor (N, C, X, Y, Z) and returns one (N, K, X, Y, Z); ``description`` is a `Description`
        or a mapping with its keys.

    Raises
    ------
    InputError
        It is no such object.
    """
    name = type(network_object).__name__
    predict, description = getattr(network_object, "predict", None), getattr(network_object, "description", None)
    if not callable(predict) or not isinstance(description, (Description, Mapping)):
        raise InputError(
            f"The model is a {name}, which is no segmenter: give the name or path of one, or an object with "
            "predict(batch) and a description."
        )
    if isinstance(description, Mapping):
        description = Description.of({"name": name, **description}, f"of {name}")
    network = (
        network_object if isinstance(network_object, torch.nn.Module) else getattr(network_object, "network", None)
    )
    return DescribedSegmenter(description, predict, "Python object", network=network)


def _description_file(path: Path) -> Path | None:
    if path.suffix in DESCRIPTIONS and path.is_file():
        return path
    if path.suffix in WEIGHTS and path.is_file():
        beside = [path.with_suffix(suffix) for suffix in DESCRIPTIONS]
        return next((file for file in beside if file.is_file()), None)
    if path.is_dir():
        inside = [file for suffix in DESCRIPTIONS for file in path.glob(f"*{suffix}")]
        return inside[0] if len(inside) == 1 else None
    return None


def _monai_network(description: Description, source: str) -> torch.nn.Module:
    """Build the network by its class; only MONAI's and torch's are reachable, see `configuration`."""
    content = {"network_def": {"_target_": description.network, **description.arguments}}
    try:
        network = Configuration(content, source).build("network_def")
    except InputError as error:
        raise InputError(
            f"The description {source} names the network {description.network}, which is none of MONAI's: give one of "
            "monai.networks.nets with plain arguments, or TorchScript."
        ) from error
    except Exception as error:  # whatever the class raises
        raise InputError(f"The network {description.network} of {source} does not build ({reason(error)}).") from error
    if not isinstance(network, torch.nn.Module):
        raise InputError(f"The description {source} names {description.network}, which is no network.")
    return network


def _is_shape(error: RuntimeError) -> bool:
    """Whether an error is about the shape of the input rather than about memory or the device."""
    text = str(error).lower()
    return any(word in text for word in ("size", "shape", "channels", "dimension")) and "memory" not in text
