"""Control maps: saliency maps made without the network, which a metric must not mistake for explanations.

A metric that ranks one of them as high as a real map says nothing about the network.

References
----------
J. Adebayo et al. "Sanity Checks for Saliency Maps", NeurIPS 2018 (the edge detector).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, gaussian_gradient_magnitude
from torch import Tensor

from XAICLIPLib.errors import InputError

Control = Literal["random", "smooth noise", "centre", "edges"]
CONTROLS: tuple[Control, ...] = get_args(Control)

OUTLINE = ("mask", "depth", "border", "centre")
"""Controls made of outlines: of the network's drawing (see `outline_maps`), and of the region (``centre``).

Hiding the organ itself loses the whole score. A map that does better than noise may therefore still say no more than
these outlines do."""

GRAIN_MM = 12.0
"""Edge of the cubes that the random order removes, and the scale of the smooth noise.

Removing random single voxels would be no fair control: it makes salt noise, which ruins a network's output long before
a hole of the same volume does."""

EDGE_MM = 2.0
"""Standard deviation of the Gaussian of the edge detector: about a voxel of a CT."""

Spacing = tuple[float, float, float]


def random_map(shape: tuple[int, ...], spacing_mm: Spacing, seed: int = 0, grain_mm: float = GRAIN_MM) -> Tensor:
    """Random values in [0, 1], the same within cubes.

    Parameters
    ----------
    shape
        X, Y, Z.
    spacing_mm
        Voxel size along X, Y and Z.
    seed
        Of the values, and of the offset of the grid of cubes.
    grain_mm
        Edge of a cube; 0 gives each voxel a value of its own.

    Returns
    -------
    Tensor
        (X, Y, Z), float32.
    """
    generator = np.random.default_rng(seed)
    edges = [max(1, round(grain_mm / s)) for s in spacing_mm]
    cells = generator.random([n // e + 2 for n, e in zip(shape, edges, strict=True)], np.float32)
    starts = [int(generator.integers(e)) for e in edges]
    cell_of_voxel = np.ix_(*[(np.arange(n) + a) // e for n, a, e in zip(shape, starts, edges, strict=True)])
    return torch.from_numpy(np.ascontiguousarray(cells[cell_of_voxel]))


def smooth_noise(shape: tuple[int, ...], spacing_mm: Spacing, seed: int = 0, grain_mm: float = GRAIN_MM) -> Tensor:
    """White noise in [0, 1] blurred by a Gaussian of standard deviation ``grain_mm`` / 2: (X, Y, Z), float32.

    It is not rescaled to [0, 1]: positive values that vary little are what overlap metrics fail on.
    """
    noise = np.random.default_rng(seed).random(shape, np.float32)
    blurred: NDArray[np.float32] = gaussian_filter(noise, [grain_mm / 2 / s for s in spacing_mm])
    return torch.from_numpy(blurred)


def centre_map(mask: Tensor, spacing_mm: Spacing) -> Tensor:
    """How deep each voxel lies in a mask, in mm; negative outside: (X, Y, Z), float32.

    A map that is high in the middle of the region looks like an explanation, but uses nothing but the region.

    Raises
    ------
    InputError
        The mask (X, Y, Z) bool is empty.
    """
    inside = mask.cpu().numpy().astype(bool)
    if not inside.any():
        raise InputError("The region is empty, so it has no centre: give another region.")
    deep = distance_transform_edt(inside, sampling=spacing_mm) if not inside.all() else _to_border(inside, spacing_mm)
    away = distance_transform_edt(~inside, sampling=spacing_mm)
    return torch.from_numpy(np.asarray(deep - away, np.float32))


def _to_border(inside: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.float64]:
    """Distance to the border of the volume, for a mask that fills the volume."""
    padded: NDArray[np.float64] = distance_transform_edt(np.pad(inside, 1), sampling=spacing_mm)
    return padded[1:-1, 1:-1, 1:-1]


def outline_maps(target: Tensor, spacing_mm: Spacing) -> dict[str, Tensor]:
    """Maps made of nothing but the outline of the network's drawing, by name; see `OUTLINE`.

    Parameters
    ----------
    target
        (X, Y, Z) bool: the network's drawing.
    spacing_mm
        Voxel size along X, Y and Z.

    Returns
    -------
    dict
        ``mask``: 1 inside; ``depth``: how deep a voxel lies inside, in mm, negative outside; ``border``: how near it
        lies to the border. (X, Y, Z), float32.
    """
    depth = centre_map(target, spacing_mm)
    return {"mask": target.cpu().float(), "depth": depth, "border": -depth.abs()}


def edge_map(volume: Tensor, spacing_mm: Spacing, sigma_mm: float = EDGE_MM) -> Tensor:
    """Length of the gradient of the blurred input (C, X, Y, Z), the largest of its channels: (X, Y, Z), float32.

    It looks like many published saliency maps and needs no network.
    """
    sigma = [sigma_mm / s for s in spacing_mm]
    channels = [gaussian_gradient_magnitude(c.detach().cpu().numpy(), sigma) for c in volume.float()]
    return torch.from_numpy(np.max(channels, axis=0).astype(np.float32))


def controls(volume: Tensor, region: Tensor, spacing_mm: Spacing, seed: int = 0) -> dict[Control, Tensor]:
    """All control maps, by name.

    Parameters
    ----------
    volume
        (C, X, Y, Z), the network's input.
    region
        (X, Y, Z) bool, of which ``centre`` is the depth.
    spacing_mm
        Voxel size along X, Y and Z.
    seed
        Of what is random.

    Returns
    -------
    dict
        ``random``, ``smooth noise``, ``centre`` and ``edges``: (X, Y, Z), float32, on the CPU.
    """
    shape = tuple(volume.shape[1:])
    return {
        "random": random_map(shape, spacing_mm, seed),
        "smooth noise": smooth_noise(shape, spacing_mm, seed),
        "centre": centre_map(region, spacing_mm),
        "edges": edge_map(volume, spacing_mm),
    }
