"""Any network on disk is recognised for what it is, and so is what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from monai.networks.nets import UNet

from XAICLIPLib.errors import InputError
from XAICLIPLib.models import catalogue
from XAICLIPLib.resources import resource_path
from XAICLIPLib.segmentation.networks import formats

CPU = torch.device("cpu")


def recognise_format(path: Path) -> list[str]:
    return [kind.name for kind in formats.formats() if kind.recognises(path)]


def test_the_shipped_network_is_a_bundle_and_nothing_else() -> None:
    assert recognise_format(resource_path("models", "abdomen-ct")) == ["bundle"]


def test_a_described_network_loads_by_its_path(tmp_path: Path) -> None:
    arguments = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    torch.save(UNet(**arguments).state_dict(), tmp_path / "net.pt")
    content = {
        "network": {"name": "UNet", "arguments": arguments},
        "weights": "net.pt",
        "labels": ["background", "liver"],
    }
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(content))
    for path in (tmp_path, tmp_path / "net.pt", tmp_path / "net.yaml"):
        assert recognise_format(path) == ["network"]
        assert catalogue.load_segmenter(path, CPU).name == tmp_path.name


@pytest.mark.parametrize("name", ["", "empty", "text.txt", "x" * 5000, "a\0b"])
def test_what_is_no_network_is_recognised_as_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no network")
    assert formats.load(Path(str(tmp_path / name)) if "\0" not in name else Path(name), CPU) is None


class Offer:
    """An entry point of an installed package."""

    def __init__(self, name: str, made: Any) -> None:
        self.name, self._made = name, made

    def load(self) -> Any:
        return self._made


class Own:
    description: ClassVar[dict[str, Any]] = {"labels": ["background", "liver"]}

    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.cat([batch, batch], 1)


def test_a_package_offers_networks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = [Offer("own-net", lambda device: Own()), Offer("broken", lambda device: 1 / 0)]
    monkeypatch.setattr(formats, "entry_points", lambda group: offers if group == formats.ENTRY_POINTS else [])
    assert catalogue.load_segmenter("own-net", CPU).labels == {0: "background", 1: "liver"}
    with pytest.raises(InputError, match=r"broken of an installed package does not load \(division by zero\)"):
        catalogue.load_segmenter("broken", CPU)
    with pytest.raises(InputError, match=r"There is no model nosuch: .*own-net"):
        catalogue.load_segmenter("nosuch", CPU)


@pytest.mark.parametrize("name", ["lone.ts", "lone.pt", "lone.pth", "lone.safetensors"])
def test_weights_alone_are_told_to_need_a_description(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.jit.script(torch.nn.ReLU()).save(str(path))
    with pytest.raises(InputError, match=rf"{name} says nothing of .*: put a description beside it, lone\.yaml"):
        catalogue.load_segmenter(path, CPU)
