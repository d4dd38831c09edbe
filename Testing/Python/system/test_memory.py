"""How much memory is free, and which errors mean that it ran out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from XAICLIPLib.errors import CPU, InputError, NotEnoughMemory
from XAICLIPLib.system import memory
from XAICLIPLib.system.memory import free_memory, on_device, out_of_memory, ran_out, total_memory


def wrapped(error: BaseException) -> BaseException:
    """As MONAI's transforms raise what is raised in them."""
    try:
        raise RuntimeError("applying transform <Spacing>") from error
    except RuntimeError as outer:
        return outer


FULL = {
    "PyTorch on a CPU": RuntimeError("[alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    "NumPy": MemoryError("Unable to allocate 8.5 GiB for an array"),
    "ITK": RuntimeError("Exception thrown in SimpleITK Cast: itk::ERROR: Failed to allocate memory for image."),
    "C++": RuntimeError("std::bad_alloc"),
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
}


@pytest.mark.parametrize("name", FULL)
def test_memory_that_ran_out_is_known_in_whatever_words(name: str) -> None:
    assert out_of_memory(FULL[name]) and out_of_memory(wrapped(FULL[name]))
    assert on_device(FULL[name]) == (name == "CUDA")
    assert not out_of_memory(wrapped(ValueError("no spacing"))) and not out_of_memory(InputError("Out of memory?"))


@pytest.mark.parametrize("name", FULL)
def test_the_cpu_is_advised_only_where_a_gpu_is_full(name: str) -> None:
    told = ran_out(FULL[name], "while the network ran", "with 3 × 4 × 5 voxels")
    gpu = name == "CUDA"
    assert isinstance(told, NotEnoughMemory) and "\n" not in str(told)
    assert "ran out while the network ran, with 3 × 4 × 5 voxels: " in str(told)
    assert ("cpu" in str(told)) == gpu == (CPU in told.ways)
    assert ("of the GPU" in str(told)) == gpu
    assert "fewer slices" in str(told) and "bundle" not in str(told)


def test_the_least_limit_of_all_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 90000000 kB\nMemAvailable:   50000000 kB\n")
    (proc / "self" / "statm").write_text("1000 1 1 1 0 1 0")
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_CGROUP", groups)
    assert free_memory() == 50000000 * 1024
    # Version 2: the group around ours has a limit, of which files that could be dropped are not used up.
    (proc / "self" / "cgroup").write_text("0::/box/inner\n")
    (groups / "box" / "inner").mkdir(parents=True)
    (groups / "box" / "inner" / "memory.max").write_text("max\n")
    (groups / "box" / "inner" / "memory.current").write_text("5\n")
    (groups / "box" / "memory.max").write_text("8000000000\n")
    (groups / "box" / "memory.current").write_text("3000000000\n")
    (groups / "box" / "memory.stat").write_text("anon 1\ninactive_file 1000000000\n")
    assert free_memory() == 6000000000 and total_memory() == 8000000000
    # Version 1, in a container that sees its own group as the root.
    (proc / "self" / "cgroup").write_text("4:memory:/docker/1a2b\n3:cpu:/\n")
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("4000000000\n")
    (groups / "memory" / "memory.usage_in_bytes").write_text("3900000000\n")
    (groups / "memory" / "memory.stat").write_text("total_inactive_file 0\n")
    assert free_memory() == 100000000
    (groups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert free_memory() == 50000000 * 1024, "as version 1 writes no limit"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space as Linux has them")
def test_a_limit_of_address_space_counts() -> None:
    code = (
        "import resource\nfrom XAICLIPLib.system.memory import free_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\nprint(free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 * 2**30 < int(done.stdout) < 2**30
