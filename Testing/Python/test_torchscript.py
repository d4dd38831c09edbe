"""TorchScript: networks load, programs that touch files do not, and nothing of them runs before that is known."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from XAICLIPLib.errors import InputError
from XAICLIPLib.segmentation.torchscript import is_torchscript, read_torchscript

CPU = torch.device("cpu")


class Saving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "stolen.pt")
        return x


class Mapping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file("made.bin", True, 4)[0]


def test_a_network_gives_what_it_gave_before_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (4, 8), (2,)).eval()
    torch.jit.script(network).save(str(tmp_path / "net.ts"))
    loaded = read_torchscript(tmp_path / "net.ts", CPU)
    x = torch.rand(2, 1, 8, 8, 8)
    torch.testing.assert_close(loaded(x), network(x))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(("program", "call"), [(Saving, "torch.save"), (Mapping, "torch.from_file")])
def test_a_program_that_touches_files_needs_trust(tmp_path: Path, program: type[nn.Module], call: str) -> None:
    torch.jit.script(program()).save(str(tmp_path / "net.ts"))
    with pytest.raises(InputError, match=f"would call {call}.*--trust"):
        read_torchscript(tmp_path / "net.ts", CPU)
    read_torchscript(tmp_path / "net.ts", CPU, trust=True)


def test_blanks_around_the_dot_do_not_hide_a_call(tmp_path: Path) -> None:
    torch.jit.script(Saving()).save(str(tmp_path / "net.ts"))
    with zipfile.ZipFile(tmp_path / "net.ts") as before, zipfile.ZipFile(tmp_path / "hidden.ts", "w") as after:
        for name in before.namelist():
            after.writestr(name, before.read(name).replace(b"torch.save(", b"torch . save("))
    with pytest.raises(InputError, match=r"would call torch\.save"):
        read_torchscript(tmp_path / "hidden.ts", CPU)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    torch.jit.script(UNet(3, 1, 2, (4, 8), (2,))).save(str(tmp_path / "net.ts"))
    whole = (tmp_path / "net.ts").read_bytes()
    (tmp_path / "net.ts").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"net\.ts cannot be loaded"):
        read_torchscript(tmp_path / "net.ts", CPU)


def test_a_checkpoint_is_told_from_a_program(tmp_path: Path) -> None:
    torch.jit.script(UNet(3, 1, 2, (4, 8), (2,))).save(str(tmp_path / "net.pt"))
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("neither")
    assert is_torchscript(tmp_path / "net.pt")
    assert not any(is_torchscript(tmp_path / name) for name in ("state.pt", "text.pt", "absent.pt"))
