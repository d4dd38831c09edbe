"""MONAI bundles as segmenters: network, preprocessing, sliding window, labels and weights, all from the bundle.

A bundle's configuration can run code: strings that begin with ``$`` are Python, and ``_target_`` may name any
callable. Only the parts that are needed (network, preprocessing, inferer) are evaluated, and these only when they hold
no expression and name nothing outside MONAI and torch, unless the user trusts the bundle.

References
----------
MONAI bundle specification, https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Transform
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.checksums import sha256
from XAICLIPLib.errors import InputError
from XAICLIPLib.segmentation.segmenter import Activation, Prepared, SlidingWindow

if TYPE_CHECKING:
    import SimpleITK as sitk

_ALLOWED = ("monai.networks.", "monai.transforms.", "monai.inferers.", "torch.nn.")
_CONFIGURATIONS = ("inference.json", "inference.yaml", "inference.yml")
_WEIGHTS = ("model.safetensors", "model.pt", "model.pth")
_NETWORK_KEYS = ("network_def", "network")
_PREPROCESSING_KEYS = ("preprocessing", "inference_transform", "pre_transforms", "test_preprocessing")


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
        Evaluate expressions and names outside MONAI and torch in the bundle's configuration. They are code.

    Raises
    ------
    InputError
        Where a part is missing or unusable, or the configuration would run code that is not trusted.
    """

    def __init__(self, folder: Path, device: torch.device, trust: bool = False) -> None:
        self.folder = Path(folder)
        self.device = device
        metadata = self._read_metadata()
        parser = ConfigParser(self._read_configuration())
        parser.update({"bundle_root": str(self.folder)})
        network_key = self._first_key(parser, _NETWORK_KEYS, "a network")
        preprocessing_key = self._first_key(parser, _PREPROCESSING_KEYS, "its preprocessing")
        needed = [network_key, preprocessing_key] + (["inferer"] if "inferer" in parser else [])
        if not trust:
            for key in needed:
                self._refuse_code(parser, key)
        network = self._build(parser, network_key)
        self.weights = self._find_weights()
        self.network = self._load_weights(network).eval().to(device)
        self._transform = self._without_reading(self._build(parser, preprocessing_key))
        self._window = self._sliding_window(self._build(parser, "inferer") if "inferer" in parser else None)
        data_format = metadata.get("network_data_format", {})
        image = data_format.get("inputs", {}).get("image", {})
        channels = data_format.get("outputs", {}).get("pred", {}).get("channel_def", {})
        if not channels:
            raise InputError(
                f"The bundle {self.folder} does not name its output channels: "
                "add channel_def under network_data_format/outputs/pred in configs/metadata.json."
            )
        self._labels = {int(channel): str(name) for channel, name in channels.items()}
        self.channels: int = int(image.get("num_channels", 1))
        self.modality: str | None = image.get("modality")
        self._activation: Activation = self._find_activation(parser)
        self._metadata = metadata

    @property
    def name(self) -> str:
        """The bundle's own name."""
        return str(self._metadata.get("name", self.folder.name))

    @property
    def labels(self) -> Mapping[int, str]:
        """Structure of each output channel, as ``channel_def`` says."""
        return self._labels

    @property
    def activation(self) -> Activation:
        """From the bundle's postprocessing; softmax where it does not say."""
        return self._activation

    @property
    def window(self) -> SlidingWindow | None:
        """From the bundle's inferer; None where it takes whole volumes."""
        return self._window

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
        """Run the bundle's preprocessing on an image that is already in memory."""
        if self.channels != 1:
            raise InputError(
                f"The network {self.name} wants {self.channels} images of one patient at once, and one was given: "
                "choose a network for a single image."
            )
        prepared = self._transform({"image": imaging.as_metatensor(image)})["image"]
        affine = np.asarray(prepared.affine, dtype=np.float64)
        return Prepared(torch.as_tensor(prepared.as_tensor(), dtype=torch.float32), affine)

    def logits(self, patches: Tensor) -> Tensor:
        """(N, C, X, Y, Z) to (N, K, X, Y, Z)."""
        output = self.network(patches)
        if isinstance(output, (list, tuple)):  # deep supervision: the first is at full resolution
            output = output[0]
        return output.float()

    def _read_metadata(self) -> dict[str, Any]:
        path = self.folder / "configs" / "metadata.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.folder} is no MONAI bundle: {path} cannot be read ({error}).") from error

    def _read_configuration(self) -> dict[str, Any]:
        for name in _CONFIGURATIONS:
            path = self.folder / "configs" / name
            if path.is_file():
                try:
                    return dict(ConfigParser.load_config_file(str(path)))
                except Exception as error:  # json, yaml and MONAI raise their own
                    raise InputError(f"The bundle's {path} cannot be read ({error}).") from error
        raise InputError(f"The bundle {self.folder} has none of configs/{', configs/'.join(_CONFIGURATIONS)}.")

    def _first_key(self, parser: ConfigParser, keys: tuple[str, ...], what: str) -> str:
        for key in keys:
            if key in parser:
                return key
        raise InputError(
            f"The bundle {self.folder} does not define {what}: its inference configuration has none of "
            f"{', '.join(keys)}."
        )

    def _refuse_code(self, parser: ConfigParser, key: str) -> None:
        """Refuse a section that would run code, with all that it refers to."""
        seen: set[str] = set()
        waiting = [key]
        while waiting:
            key = waiting.pop()
            if key in seen:
                continue
            seen.add(key)
            for target, text in _strings(parser[key]):
                if text.startswith("@"):
                    waiting.append(text[1:])
                elif text.startswith(("$", "%")):
                    raise InputError(
                        f"The bundle {self.folder} would run code from its configuration ({key}: {text[:60]}); "
                        "read it, and if you trust it, say so with --trust."
                    )
                elif target and "." in text and not text.startswith(_ALLOWED):
                    raise InputError(
                        f"The bundle {self.folder} would call {text}, which is neither MONAI nor torch; "
                        "read it, and if you trust it, say so with --trust."
                    )

    def _build(self, parser: ConfigParser, key: str) -> Any:
        try:
            return parser.get_parsed_content(key)
        except Exception as error:  # whatever the bundle's classes raise
            raise InputError(f"The bundle {self.folder} does not build ({key}: {error}).") from error

    def _find_weights(self) -> Path:
        for name in _WEIGHTS:
            if (self.folder / "models" / name).is_file():
                return self.folder / "models" / name
        raise InputError(f"The bundle {self.folder} has no weights: put model.pt into its models folder.")

    def _load_weights(self, network: torch.nn.Module) -> torch.nn.Module:
        try:
            if self.weights.suffix == ".safetensors":
                from safetensors.torch import load_file

                state: Any = load_file(self.weights)
            else:
                state = torch.load(self.weights, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model", "network"):
                if isinstance(state, dict) and isinstance(state.get(key), dict):
                    state = state[key]
            network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
        except Exception as error:  # a damaged or hostile file fails in many ways
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"The weights {self.weights} do not load into the bundle's network ({first}).") from error
        return network

    @staticmethod
    def _without_reading(transform: Any) -> Compose:
        """The preprocessing less what reads files: the image is in memory, its channel first."""
        steps = transform.transforms if isinstance(transform, Compose) else [transform]
        kept: list[Transform] = [s for s in steps if not isinstance(s, (LoadImaged, EnsureChannelFirstd))]
        return Compose(kept)

    @staticmethod
    def _sliding_window(inferer: Any) -> SlidingWindow | None:
        if not isinstance(inferer, SlidingWindowInferer):
            return None
        roi = inferer.roi_size
        return SlidingWindow(
            roi_size=(roi,) * 3 if isinstance(roi, int) else tuple(int(s) for s in roi),
            overlap=inferer.overlap if isinstance(inferer.overlap, (int, float)) else tuple(inferer.overlap),
            mode="gaussian" if str(inferer.mode.value) == "gaussian" else "constant",
            sigma_scale=inferer.sigma_scale
            if isinstance(inferer.sigma_scale, (int, float))
            else tuple(inferer.sigma_scale),
            padding_value=float(inferer.cval),
        )

    def _find_activation(self, parser: ConfigParser) -> Activation:
        text = json.dumps(parser["postprocessing"], default=str) if "postprocessing" in parser else ""
        if '"sigmoid": true' in text:
            return "sigmoid"
        first = self._labels.get(0, "").lower()
        return "softmax" if '"softmax": true' in text or first in ("background", "bg") else "sigmoid"


def _strings(part: Any, key: str = "") -> Iterator[tuple[bool, str]]:
    """Every string of a configuration, with whether it is a ``_target_``."""
    if isinstance(part, str):
        yield key == "_target_", part
    elif isinstance(part, Mapping):
        for name, value in part.items():
            yield from _strings(value, str(name))
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from _strings(value)
