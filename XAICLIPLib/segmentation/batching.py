"""Running patches in batches that fit into memory, in full or half precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from XAICLIPLib.system.memory import out_of_memory

USUAL_PATCH = 96**3
"""Voxels of a usual patch. On a CPU four such patches are computed together: more take memory and save no time."""

OUTPUT_BYTES = 2**29
"""What the logits of a batch may take on a CPU. A hundred classes of four usual patches are 1.5 GB, beside what the
network itself holds."""

LARGEST_BATCH, MEMORY_SHARE = 64, 0.7
"""Upper bounds of a batch on a GPU: patches, and the share of the free memory."""


def run_batch(forward: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Run a batch; a lone small item is doubled on a CPU, where 3D convolutions of batch 1 fall to a slow kernel.

    PyTorch takes that kernel only for small inputs. Doubling a larger one, or a slice one voxel thick, would only cost
    twice the time and memory.
    """
    small = math.prod(batch.shape[2:]) <= USUAL_PATCH and min(batch.shape[2:]) > 1
    if len(batch) == 1 and batch.device.type == "cpu" and small:
        try:
            return forward(batch.expand(2, *batch.shape[1:]).contiguous())[:1]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
    if batch.device.type == "cuda":
        # TF32 and another algorithm for another batch size would differ by about 1e-3: as large as an effect.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return forward(batch)
    return forward(batch)


def run_fitting(forward: Callable[[Tensor], Tensor], patches: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Run patches (C, *size) as one batch, or as batches of half the size, again and again, where memory runs out.

    Returns
    -------
    Tensor
        (N, K, *size), in the order of ``patches``.
    int
        The size of the batches that fit: the number of patches where all went at once.
    """
    size, outputs, done = len(patches), [], 0
    while done < len(patches):
        part = patches[done : done + size]
        try:
            outputs.append(run_batch(forward, torch.stack(list(part))))
            done += len(part)
            continue
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not out_of_memory(error):
                raise
        size = len(part) // 2
        if part[0].device.type == "cuda":  # outside the handler: the error holds on to the failed batch
            torch.cuda.empty_cache()
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), size


def reduced_precision(device: torch.device) -> AbstractContextManager[object]:
    """The context in which networks run in half precision: float16 on a GPU, bfloat16 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16 if device.type == "cpu" else torch.float16)


@dataclass
class Batches:
    """Runs patches through a network, as many at once as fit.

    Parameters
    ----------
    forward
        The network: patches (N, C, *size) to logits (N, K, *size).
    device
        Where it runs.
    size
        Patches computed together; None chooses: on a CPU four of the usual size, on a GPU as many as the memory
        holds. It is halved, for good, where memory runs out.
    reduced
        Run in half precision; the logits come out in float32 all the same.
    channels
        K, where it is known: on a CPU so few patches are chosen that their logits stay small.

    Attributes
    ----------
    forwards
        Patches computed so far.
    warnings
        Messages on what was changed so that the run could go on.
    """

    forward: Callable[[Tensor], Tensor]
    device: torch.device
    size: int | None = None
    reduced: bool = False
    channels: int | None = None
    forwards: int = field(init=False, default=0)
    warnings: list[str] = field(init=False, default_factory=list)

    def size_for(self, patch: Tensor) -> int:
        """How many patches like this one (C, *size) are computed together; on a GPU, runs it to measure its memory."""
        if self.size is None:
            self.size = (
                self._batch_size_for_memory(patch)
                if self.device.type == "cuda"
                else usual_size(patch, self.channels or 1)
            )
        return self.size

    def run(self, patches: Sequence[Tensor]) -> Tensor:
        """Patches (C, *size) to logits (N, K, *size), in order."""
        outputs, done = [], 0
        with reduced_precision(self.device) if self.reduced else nullcontext():
            while done < len(patches):
                part = patches[done : done + self.size_for(patches[0])]
                output, fitted = run_fitting(self.forward, part)
                if fitted < len(part):
                    self.warnings.append(f"Memory ran out: batches were cut from {len(part)} to {fitted} patches.")
                    self.size = fitted
                outputs.append(output.float())
                done += len(part)
        self.forwards += len(patches)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _batch_size_for_memory(self, patch: Tensor) -> int:
        """Batch size for a GPU: the free memory divided by the additional memory of a second patch."""
        peaks = []
        for count in (1, 2):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            try:
                run_batch(self.forward, patch.expand(count, *patch.shape))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                return 1
            peaks.append(torch.cuda.max_memory_allocated(self.device) - before)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        each = max(peaks[1] - peaks[0], peaks[1] // 2, 1)
        return max(1, min(LARGEST_BATCH, int(MEMORY_SHARE * free / each)))


def usual_size(patch: Tensor, channels: int = 1) -> int:
    """Patches (C, *size) computed together where nothing is measured: four of the usual size, fewer of larger ones.

    Two of the usual size at least, however many channels their logits have: a lone one is run twice (`run_batch`).
    """
    voxels = math.prod(patch.shape[1:])
    usual = 4 if voxels <= USUAL_PATCH else 2 if voxels <= 2 * USUAL_PATCH else 1
    fitting = OUTPUT_BYTES // max(1, 4 * channels * voxels)
    return min(usual, max(2 if voxels <= USUAL_PATCH else 1, fitting))
