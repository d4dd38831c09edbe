"""Gradients of a function of a network's logits, patch by patch.

A network is any callable from patches to logits. Whether it can be differentiated is found out by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from XAICLIPLib.errors import InputError, MethodUnsuited
from XAICLIPLib.segmentation.batching import run_batch
from XAICLIPLib.system.memory import out_of_memory

ANOTHER_METHOD = "choose a method that needs no gradient, such as occlusion."

Job = TypeVar("Job")
Result = TypeVar("Result")

PATCHES_AT_ONCE = 2
"""Patches whose graphs are held at once: a graph takes many times the memory of inference, and a lone patch is slow on
a CPU."""


def vector_jacobian_product(
    forward: Callable[[Tensor], Tensor], patches: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> Tensor:
    """Gradient with respect to each patch of ``sum(forward(patch) * cotangent)``.

    All patches are run together; where memory runs out, one after the other.

    Parameters
    ----------
    forward
        The network: (N, C, *size) to (N, K, *size).
    patches
        (C, *size) each.
    cotangents
        (K, *size) each: the derivative of the result by the logits.

    Returns
    -------
    Tensor
        (N, C, *size).

    Raises
    ------
    InputError
        The network cannot be differentiated, or its gradients do not fit into the memory.
    """
    try:
        together = run_together(
            lambda jobs: [_products(forward, torch.stack([p for p, _ in jobs]), torch.stack([c for _, c in jobs]))],
            list(zip(patches, cotangents, strict=True)),
        )
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise MethodUnsuited("the gradients of the network do not fit into the memory", ANOTHER_METHOD) from error
    return torch.cat(together)


def run_together(compute: Callable[[Sequence[Job]], list[Result]], jobs: Sequence[Job]) -> list[Result]:
    """The results of ``compute`` for all jobs at once; for one job after the other where memory runs out."""
    try:
        return compute(jobs)
    except (RuntimeError, MemoryError) as error:
        if len(jobs) == 1 or not out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # outside the handler: the error holds on to the failed batch
    return [result for job in jobs for result in compute([job])]


@contextmanager
def with_gradients(device: torch.device) -> Iterator[None]:
    """Enable gradients even under ``inference_mode`` or ``no_grad``, in full precision on CUDA as in `run_batch`."""
    with torch.inference_mode(False), torch.enable_grad():
        if device.type == "cuda":
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
                yield
        else:
            yield


def _products(forward: Callable[[Tensor], Tensor], patches: Tensor, cotangents: Tensor) -> Tensor:
    with with_gradients(patches.device):
        inputs = patches.clone().requires_grad_()  # a clone, as inference tensors take part in no graph
        try:
            output = run_batch(forward, inputs)
            if not output.requires_grad:
                return _constant(forward, patches, output)
            (gradient,) = torch.autograd.grad(output, inputs, cotangents.clone(), allow_unused=True)
        except RuntimeError as error:  # NotImplementedError is one of them
            if out_of_memory(error):
                raise
            raise not_differentiable(str(error).strip().splitlines()[0]) from error
        return torch.zeros_like(patches) if gradient is None else gradient.detach()


def _constant(forward: Callable[[Tensor], Tensor], patches: Tensor, output: Tensor) -> Tensor:
    """A gradient of 0 if the output does not depend on the input; a broken graph looks the same and is refused."""
    ramp = torch.linspace(0, 1, patches[0].numel(), device=patches.device).reshape(patches[0].shape)
    with torch.no_grad():
        if torch.equal(run_batch(forward, patches + ramp), output):
            return torch.zeros_like(patches)
    raise not_differentiable("its output depends on its input, but it was made without autograd")


def not_differentiable(why: str) -> InputError:
    """The error of a network through which gradients cannot be followed."""
    return MethodUnsuited(f"the network cannot be differentiated ({why})", ANOTHER_METHOD)
