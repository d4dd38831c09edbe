"""Gradients of what is computed from a network's logits, patch by patch.

Networks are strangers here: a callable that maps patches to logits. Whether gradients can be followed through it is
found out by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.segmentation.sliding_window import out_of_memory, run_batch

TOGETHER = 2
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
        (K, *size) each: the derivative by the logits of what is wanted.

    Returns
    -------
    Tensor
        (N, C, *size).

    Raises
    ------
    InputError
        The network cannot be differentiated.
    """
    try:
        return _together(forward, torch.stack(list(patches)), torch.stack(list(cotangents)))
    except RuntimeError as error:
        if len(patches) == 1 or not out_of_memory(error):
            raise
    if patches[0].device.type == "cuda":  # outside the handler: the error holds on to the failed batch
        torch.cuda.empty_cache()
    return torch.cat([_together(forward, p[None], c[None]) for p, c in zip(patches, cotangents, strict=True)])


@contextmanager
def with_gradients(device: torch.device) -> Iterator[None]:
    """Follow gradients, whatever the caller does, in full precision on CUDA as in `run_batch`."""
    with torch.inference_mode(False), torch.enable_grad():
        if device.type == "cuda":
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
                yield
        else:
            yield


def _together(forward: Callable[[Tensor], Tensor], patches: Tensor, cotangents: Tensor) -> Tensor:
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
            raise _no_gradient(str(error).strip().splitlines()[0]) from error
        return torch.zeros_like(patches) if gradient is None else gradient.detach()


def _constant(forward: Callable[[Tensor], Tensor], patches: Tensor, output: Tensor) -> Tensor:
    """No gradient at all, if the output really does not depend on the input; a broken graph looks the same."""
    ramp = torch.linspace(0, 1, patches[0].numel(), device=patches.device).reshape(patches[0].shape)
    with torch.no_grad():
        if torch.equal(run_batch(forward, patches + ramp), output):
            return torch.zeros_like(patches)
    raise _no_gradient("its output depends on its input, but it was made without autograd")


def _no_gradient(why: str) -> InputError:
    return InputError(
        f"The network cannot be differentiated ({why}): choose a method that needs no gradient, such as occlusion."
    )
