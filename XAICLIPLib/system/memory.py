"""What to tell when memory runs out. PyTorch is not imported, because there may be no memory left for it."""

from __future__ import annotations

import re


def memory_shortage(error: BaseException, lower_batch: str, use_cpu: str) -> str:
    """The sentence for the user when memory ran out: how much was asked for, and what helps where it ran out.

    Parameters
    ----------
    error
        Of Python, NumPy or PyTorch, for which `XAICLIPLib.segmentation.batching.out_of_memory` holds.
    lower_batch, use_cpu
        The ways out in the words of the place where it is shown; the second only where the memory was not the CPU's.
    """
    text = str(error)
    size = re.search(r"allocate ([\d.]+) ?(bytes|[KMGT]i?B)", text)
    asked = ""
    if size is not None:
        factor = {"b": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[size[2][0]]
        asked = f" for {float(size[1].rstrip('.')) * factor / 1e9:,.3g} GB more"
    on_gpu = type(error).__name__ == "OutOfMemoryError" or any(word in text for word in ("CUDA", "cuDNN", "MPS"))
    ways = ["crop the scan", lower_batch, *([use_cpu] if on_gpu else [])]
    return f"There is not enough memory{asked}: {', '.join(ways[:-1])}{',' if on_gpu else ''} or {ways[-1]}."
