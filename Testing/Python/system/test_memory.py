"""The sentence when memory runs out: how much was asked for, and only what helps where it ran out."""

from __future__ import annotations

import pytest
import torch

from XAICLIPLib.system.memory import memory_shortage

ON_CPU, ON_GPU = "crop the scan or lower --batch-size.", "crop the scan, lower --batch-size, or try --device cpu."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried "
                         "to allocate 12000000000 bytes. Error code 12 (Cannot allocate memory)"),
            f"There is not enough memory for 12 GB more: {ON_CPU}",
        ),
        (MemoryError("Unable to allocate 3.00 GiB"), f"There is not enough memory for 3.22 GB more: {ON_CPU}"),
        (MemoryError(), f"There is not enough memory: {ON_CPU}"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of"),
            f"There is not enough memory for 0.537 GB more: {ON_GPU}",
        ),
        (RuntimeError("MPS backend out of memory"), f"There is not enough memory: {ON_GPU}"),
    ],
)  # fmt: skip
def test_the_cpu_is_no_way_out_on_the_cpu_and_the_size_is_named(error: Exception, sentence: str) -> None:
    assert memory_shortage(error, "lower --batch-size", "try --device cpu") == sentence


def test_the_size_is_that_of_a_real_failure() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert (
        memory_shortage(caught.value, "a", "b")
        == "There is not enough memory for 1.13e+06 GB more: crop the scan or a."
    )
