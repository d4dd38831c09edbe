"""TorchScript: networks load, programs that touch files do not, and nothing of them runs before that is known."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet, SwinUNETR, UNet
from torch import Tensor, nn

from XAICLIPLib.errors import InputError
from XAICLIPLib.segmentation.untrusted.torchscript import is_torchscript, read_torchscript

CPU = torch.device("cpu")
CUBE = torch.zeros(1, 1, 64, 64, 64)


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


class Multiplying(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


def rewritten(folder: Path, lines: str, rename: tuple[str, str] = ("", "")) -> Path:
    """A program with lines put before what it returns, its files renamed."""
    torch.jit.script(Multiplying()).save(str(folder / "net.ts"))
    with zipfile.ZipFile(folder / "net.ts") as before, zipfile.ZipFile(folder / "hidden.ts", "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if "/code/" in name and name.endswith(".py"):
                content = content.replace(b"    return torch", lines.encode() + b"    return torch")
                assert lines.encode() in content
            after.writestr(name.replace(*rename) if rename[0] else name, content)
    return folder / "hidden.ts"


SAVES = '    torch.save(x, "stolen.pt")\n'


@pytest.mark.parametrize(
    ("lines", "rename", "told"),
    [
        ('    t = torch\n    t.save(x, "stolen.pt")\n', ("", ""), "another name for torch"),
        ('    a = ops.aten\n    a.save(x, "stolen.pt")\n', ("", ""), r"another name for ops\.aten"),
        ('    _0 = (torch # c\n  .save(x, "stolen.pt"))\n', ("", ""), r"call torch\.save"),
        (SAVES, ("/code/", "/Code/"), "is not laid out as PyTorch does it"),
        (SAVES, (".py", ".PY"), "is not laid out as PyTorch does it"),
        ("    _0 = ops.other.call(x)\n", ("", ""), r"call ops\.other\.call"),
        # Python and PyTorch end this line, and begin this string, in different places.
        ('    # \r"""\n' + SAVES + '    # """\n', ("", ""), "control characters"),
        ('    _0 = x # type: """\n' + SAVES + '    _1 = x # """\n', ("", ""), "type in a comment"),
        ("    _0 = [x\n", ("", ""), "not written as PyTorch writes it"),
    ],
)
def test_no_other_spelling_hides_a_call(tmp_path: Path, lines: str, rename: tuple[str, str], told: str) -> None:
    with pytest.raises(InputError, match=f"{told}.*--trust"):
        read_torchscript(rewritten(tmp_path, lines, rename), CPU)


def test_the_program_that_is_read_is_the_one_that_runs(tmp_path: Path) -> None:
    """zipfile finds the list of files from the end, PyTorch at the place that is written: here these are two lists."""
    good, bad = rewritten(tmp_path, "").read_bytes(), rewritten(tmp_path, SAVES).read_bytes()
    (tmp_path / "both.ts").write_bytes(bad + good)
    with pytest.raises(InputError):
        read_torchscript(tmp_path / "both.ts", CPU)


class Named(nn.Module):
    """Has an attribute that is called like PyTorch's operators, and calls functions of several of its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = nn.ModuleList([nn.Conv3d(1, 1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for operator in self.ops:
            x = operator(x)
        return torch.abs(torch.fft.fftn(x.to(torch.device("cpu"), torch.float64))) + torch.linalg.norm(x)


@pytest.mark.parametrize(
    "network",
    [
        lambda: torch.jit.script(SegResNet(3, 8)),
        lambda: torch.jit.trace(SwinUNETR(1, 2, depths=(1, 1, 1, 1), feature_size=12).eval(), CUBE, check_trace=False),
        lambda: torch.jit.script(Named()),
    ],
    ids=["SegResNet scripted", "SwinUNETR traced", "names and modules of PyTorch"],
)
def test_networks_that_only_compute_need_no_trust(tmp_path: Path, network: Callable[[], Any]) -> None:
    network().save(str(tmp_path / "net.ts"))
    assert isinstance(read_torchscript(tmp_path / "net.ts", CPU), torch.jit.ScriptModule)


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
