"""Training volumes: reading, random patches and the intensity changes that make a network robust.

The split is that of ``../shared/data/README.md``: ``abdomen_ct`` 00-17 train, 18-19 validate, 20-23 test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch.nn import functional

from XAICLIPLib.localization.layout import body_extent

ORGANS: tuple[str, ...] = (
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
"""Class names by label of ``abdomen_ct``, the phantom and the shipped network."""

HEAD_NECK: dict[int, str] = {
    1: "brainstem",
    2: "spinal cord",
    3: "right parotid gland",
    4: "left parotid gland",
    6: "larynx",
    7: "mandible",
}
"""Contours of ``openkbp`` by label, less the esophagus."""

TRAIN, VALIDATION, TEST = range(0, 18), range(18, 20), range(20, 24)
WINDOW_HU = (-125.0, 275.0)
SPACING_MM = 3.0
PHANTOM_SEEDS = range(100, 108)

# How much intravenous contrast may move each organ's brightness (HU, low and high), for the phase augmentation.
_CONTRAST_HU: dict[int, tuple[float, float]] = {
    1: (-60, 40),
    2: (-110, 60),
    3: (-110, 60),
    6: (-45, 35),
    8: (-110, 110),
    9: (-90, 70),
}
_CONTRAST_HU |= {10: (-90, 60), 11: (-50, 30), 12: (-40, 30), 13: (-40, 30)}


@dataclass(frozen=True)
class Subject:
    """One volume with its labels, both (X, Y, Z) towards right-to-left, A-P, I-S increasing as RAS.

    ``image`` is scaled from `WINDOW_HU` to [0, 1]; ``foreground[c]`` holds up to 4096 voxel indices of class c, and
    ``foreground[0]`` of the body.
    """

    name: str
    kind: str
    image: torch.Tensor
    label: torch.Tensor
    foreground: dict[int, torch.Tensor]


def _ras_tensor(image: sitk.Image, interpolator: int) -> torch.Tensor:
    """Reorient to RAS, resample to `SPACING_MM` and return a (X, Y, Z) tensor."""
    oriented = sitk.DICOMOrient(image, "LPS")
    spacing = np.array(oriented.GetSpacing())
    if not np.allclose(spacing, SPACING_MM, atol=1e-3):
        size = np.maximum(1, np.round(np.array(oriented.GetSize()) * spacing / SPACING_MM)).astype(int).tolist()
        oriented = sitk.Resample(
            oriented,
            size,
            sitk.Transform(),
            interpolator,
            oriented.GetOrigin(),
            [SPACING_MM] * 3,
            oriented.GetDirection(),
            float(sitk.GetArrayViewFromImage(oriented).min()),
        )
    array = sitk.GetArrayFromImage(oriented)[:, ::-1, ::-1]  # z, y, x in LPS -> z, y, x in RAS
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 1, 0)))


def subject_from_images(name: str, kind: str, image: sitk.Image, label: sitk.Image) -> Subject:
    """Scale and reorient one image with its label map."""
    low, high = WINDOW_HU
    pixels = _ras_tensor(sitk.Cast(image, sitk.sitkFloat32), sitk.sitkLinear)
    classes = _ras_tensor(label, sitk.sitkNearestNeighbor).to(torch.uint8)
    scaled = ((pixels - low) / (high - low)).clamp(0, 1)
    foreground: dict[int, torch.Tensor] = {}
    for value in [0, *classes.unique().tolist()]:
        voxels = (classes == value if value else scaled > 0.05).nonzero()
        foreground[value] = voxels[:: max(1, len(voxels) // 4096)]
    return Subject(name, kind, scaled, classes, foreground)


def abdomen_subjects(data: Path, numbers: range) -> list[Subject]:
    """The numbered subjects of ``abdomen_ct``."""
    folder = data / "abdomen_ct"
    return [
        subject_from_images(
            f"abdomen_{n:02d}",
            "abdomen",
            sitk.ReadImage(str(folder / f"abdomen_{n:02d}_image.nii.gz")),
            sitk.ReadImage(str(folder / f"abdomen_{n:02d}_label.nii.gz")),
        )
        for n in numbers
    ]


def phantom_subjects(seeds: range = PHANTOM_SEEDS) -> list[Subject]:
    """Torso phantoms: a small share of training, so that the shipped models know the demo's input."""
    from XAICLIPLib.imaging.phantom import torso_phantom

    phantoms = [(seed, torso_phantom(seed)) for seed in seeds]
    return [subject_from_images(f"phantom_{seed}", "phantom", p.image, p.labels) for seed, p in phantoms]


def head_neck_subjects(data: Path, count: int, every_contour: bool = False) -> list[Subject]:
    """Head-and-neck CTs of ``openkbp``: scans without abdomen, so that no organ is invented there.

    Their values are HU plus an offset of 1024. Of their contours the esophagus is one of `ORGANS`; with
    ``every_contour`` the others follow as the classes of `HEAD_NECK`.
    """
    values = {5: ORGANS.index("esophagus")}
    if every_contour:
        values |= {value: len(ORGANS) + n for n, value in enumerate(HEAD_NECK)}
    subjects = []
    for path in sorted((data / "openkbp").glob("*_ct.nii.gz"))[:count]:
        contours = sitk.ReadImage(str(path).replace("_ct.", "_seg."))
        label = sitk.ChangeLabel(contours, {v: float(values.get(v, 0)) for v in range(1, 8)})
        image = sitk.ReadImage(str(path)) - 1024
        subjects.append(subject_from_images(path.name.removesuffix("_ct.nii.gz"), "head_neck", image, label))
    return subjects


def hippocampus_subjects(data: Path, count: int) -> list[Subject]:
    """Brain MR crops at 1 mm with the whole hippocampus as class ``len(ORGANS) + len(HEAD_NECK)``."""
    subjects = []
    for path in sorted((data / "hippocampus_mr").glob("*_image.nii.gz"))[:count]:
        image = sitk.DICOMOrient(sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32), "LPS")
        label = sitk.DICOMOrient(sitk.ReadImage(str(path).replace("_image", "_label")), "LPS") > 0
        low, high = np.percentile(sitk.GetArrayViewFromImage(image), (5, 95))
        image = (image - float(low)) / max(1e-3, float(high - low)) * (WINDOW_HU[1] - WINDOW_HU[0]) + WINDOW_HU[0]
        for volume in (image, label):  # one voxel is one step of the grid, whatever its size
            volume.SetSpacing([SPACING_MM] * 3)
        whole = sitk.Cast(label, sitk.sitkUInt8) * (len(ORGANS) + len(HEAD_NECK))
        subjects.append(subject_from_images(path.name.removesuffix("_image.nii.gz"), "hippocampus", image, whole))
    return subjects


def _sample(
    subject: Subject, centre: torch.Tensor, matrix: torch.Tensor, size: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (1, *size) and labels (*size) on the grid ``centre + matrix @ offset`` (voxels); outside is air."""
    shape = torch.tensor(subject.image.shape, dtype=torch.float32)
    axes = [torch.arange(s, dtype=torch.float32) - (s - 1) / 2 for s in size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    grid = (offsets @ matrix.T + centre) / (shape - 1) * 2 - 1
    grid = grid.flip(-1)[None]  # grid_sample wants the last axis first
    image = functional.grid_sample(subject.image[None, None], grid, align_corners=True, padding_mode="zeros")[0]
    label = functional.grid_sample(
        subject.label[None, None].float(), grid, mode="nearest", align_corners=True, padding_mode="zeros"
    )[0, 0]
    return image, label.long()


def _rotation(degrees: tuple[float, float, float]) -> torch.Tensor:
    """Rotation matrix of small turns about x, y and z."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = [k for k in range(3) if k != axis]
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = float(np.cos(angle))
        turn[i, j], turn[j, i] = -float(np.sin(angle)), float(np.sin(angle))
        matrix = matrix @ turn
    return matrix


def random_patch(
    subject: Subject, size: tuple[int, int, int], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A randomly rotated, scaled patch (1, *size) and its labels (*size), centred on an organ two times in three."""
    uniform = _uniform(generator)
    organs = sorted(subject.foreground)[1:]
    chosen = organs[int(uniform(0, len(organs)))] if organs and uniform(0, 1) < 0.66 else 0
    voxels = subject.foreground[chosen]
    centre = voxels[int(uniform(0, len(voxels)))].float()
    centre = centre + torch.tensor([uniform(-0.25, 0.25) * s for s in size])
    turn = _rotation((uniform(-7, 7), uniform(-7, 7), uniform(-14, 14)))
    scale = uniform(0.8, 1.25) * torch.tensor([uniform(0.95, 1.05) for _ in range(3)])
    return _sample(subject, centre, turn * scale, size)


def random_slice(
    subject: Subject, side: int, generator: torch.Generator, cropped: float = 0.0, usual_width_mm: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
    """A randomly tilted, scaled axial slice (side, side), rows running A to P and columns R to L as on a screen.

    With the probability ``cropped`` it shows a part of the body only (`random_box`), laid out as the localizer does
    with a usual body of that width (`XAICLIPLib.localization.layout.body_extent`).

    Returns the slice, its labels, and (pixel size in mm, height of the slice in the scan from 0 to 1).
    """
    uniform = _uniform(generator)
    organs = sorted(subject.foreground)[1:]
    chosen = organs[int(uniform(0, len(organs)))] if organs and uniform(0, 1) < 0.5 else 0
    voxels = subject.foreground[chosen]
    height = float(voxels[int(uniform(0, len(voxels)))][2])
    if uniform(0, 1) < cropped:
        shown, low, high = _part(subject, random_box(subject, chosen, generator), usual_width_mm / SPACING_MM)
    else:
        body = subject.foreground[0][:, :2].float()
        shown, low, high = subject, body.min(0).values, body.max(0).values
    extent = float((high - low).max()) * uniform(0.85, 1.35)
    middle = (low + high) / 2 + torch.tensor([uniform(-0.08, 0.08) * extent for _ in range(2)])
    centre = torch.tensor([float(middle[0]), float(middle[1]), height])
    turn = _rotation((uniform(-5, 5), uniform(-5, 5), uniform(-12, 12)))
    scale = extent / side * torch.tensor([-uniform(0.95, 1.05), -uniform(0.95, 1.05), 1.0])
    image, label = _sample(shown, centre, turn * scale, (side, side, 1))
    return image[0, :, :, 0].T, label[:, :, 0].T, (extent / side * SPACING_MM, height / subject.image.shape[2])


LEAST_MARGIN_MM = 30.0
"""The closest that training crops come to an organ."""


def random_box(subject: Subject, organ: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Bounds (x0, x1, y0, y1) of a part of the body, in voxels.

    Two times in three it is the box around an organ and a margin, from `LEAST_MARGIN_MM` to the whole body, of another
    size on each side; else a square field of view of 150 to 320 mm around the body's middle. Without an organ (0) it
    is always the latter.
    """
    uniform = _uniform(generator)
    size = torch.tensor(subject.image.shape[:2])
    if organ and uniform(0, 1) < 0.67:
        voxels = subject.foreground[organ][:, :2]
        least = LEAST_MARGIN_MM / SPACING_MM
        common = least * (float(size.max()) / 2 / least) ** (uniform(0, 1) ** 1.5)  # small margins more often
        margins = [max(least, common * uniform(0.7, 1.3)) for _ in range(4)]
        low = voxels.min(0).values - torch.tensor(margins[:2])
        high = voxels.max(0).values + torch.tensor(margins[2:]) + 1
    else:
        body = subject.foreground[0][:, :2].float()
        middle = (body.min(0).values + body.max(0).values) / 2
        edge = uniform(150, 320) / SPACING_MM
        middle = middle + torch.tensor([uniform(-0.15, 0.15) * edge for _ in range(2)])
        low, high = middle - edge / 2, middle + edge / 2
    x0, y0 = low.round().long().clamp(min=0).tolist()
    x1, y1 = torch.minimum(high.round().long(), size).tolist()
    return x0, x1, y0, y1


def _part(
    subject: Subject, box: tuple[int, int, int, int], usual_width: float
) -> tuple[Subject, torch.Tensor, torch.Tensor]:
    """The subject with nothing outside the box, and where its body is thought to begin and to end (x and y)."""
    x0, x1, y0, y1 = box
    image, label = torch.zeros_like(subject.image), torch.zeros_like(subject.label)
    image[x0:x1, y0:y1], label[x0:x1, y0:y1] = subject.image[x0:x1, y0:y1], subject.label[x0:x1, y0:y1]
    body = image[x0:x1, y0:y1] > 0.05
    if not body.any():
        body[:] = True
    low, high = body_extent(body.permute(2, 1, 0).numpy(), usual_width)
    corner = torch.tensor([x0, y0])
    return replace(subject, image=image, label=label), torch.from_numpy(low) + corner, torch.from_numpy(high) + corner


def add_surroundings(image: torch.Tensor, pixel_mm: float, generator: torch.Generator) -> torch.Tensor:
    """A table below the body and arms beside it, painted into the air of an axial slice (side, side) in [0, 1]."""
    uniform = _uniform(generator)
    body = (image > 0.05).nonzero()
    if len(body) < 100:
        return image
    (top, left), (bottom, right) = body.min(0).values.tolist(), body.max(0).values.tolist()
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in image.shape), indexing="ij")
    painted = torch.zeros_like(image)
    if uniform(0, 1) < 0.6:  # a shell of plastic, hollow in its middle
        sag = uniform(0, 0.0015) * (columns - (left + right) / 2) ** 2
        depth = (rows - (bottom + uniform(1, 6)) + sag) * pixel_mm
        inside = (depth > 0) & (depth < uniform(15, 50))
        painted[inside] = uniform(0.0, 0.1)
        painted[inside & (depth < uniform(3, 7))] = uniform(0.2, 0.7)
    if uniform(0, 1) < 0.6:
        radius = uniform(30, 50) / pixel_mm
        for column in (left - radius * uniform(0.9, 1.3), right + radius * uniform(0.9, 1.3)):
            row = (top + bottom) / 2 + uniform(-0.2, 0.3) * (bottom - top)
            distance = ((rows - row) ** 2 + (columns - column) ** 2).sqrt() / radius
            painted[distance < 1] = uniform(0.03, 0.15)  # fat, muscle, bone
            painted[distance < 0.85] = uniform(0.35, 0.5)
            painted[distance < 0.3] = 1.0
    return torch.where(image > 0.02, image, torch.maximum(image, painted))


def _uniform(generator: torch.Generator) -> Callable[[float, float], float]:
    """A function that draws uniformly between two bounds."""
    return lambda low, high: float(torch.rand((), generator=generator)) * (high - low) + low


def vary_intensity(image: torch.Tensor, label: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary contrast phase, brightness, gamma, sharpness, noise and field of view of a patch (1, X, Y, Z) in [0, 1]."""
    uniform = _uniform(generator)
    span = WINDOW_HU[1] - WINDOW_HU[0]
    if uniform(0, 1) < 0.5:  # another contrast phase: each organ brighter or darker by its own amount
        strength = uniform(0.2, 1.0)
        shift = torch.zeros(len(ORGANS))
        for value, (low, high) in _CONTRAST_HU.items():
            shift[value] = uniform(low, high) * strength / span
        shift[3] = shift[2] + 0.1 * shift[3]  # the kidneys enhance together
        kernel = [min(3, length) for length in label.shape]
        padding = [k // 2 for k in kernel]
        change = shift[torch.where(label < len(ORGANS), label, 0)][None]
        change = functional.avg_pool3d(change, kernel, 1, padding, count_include_pad=False)
        image = (image + change).clamp(0, 1) * (image > 0.01)
    if uniform(0, 1) < 0.2:
        kernel = [min(3, length) for length in label.shape]
        padding = [k // 2 for k in kernel]
        image = functional.avg_pool3d(image[None], kernel, 1, padding, count_include_pad=False)[0] * 0.7 + image * 0.3
    body = image > 0.01
    image = image * uniform(0.88, 1.12) + uniform(-0.06, 0.06) * body
    image = image.clamp(0, 1) ** uniform(0.8, 1.25)
    if uniform(0, 1) < 0.7:
        noise = torch.randn(image.shape, generator=generator) * uniform(0.0, 0.06)
        image = (image + noise).clamp(0, 1)
    if uniform(0, 1) < 0.25:  # a cropped field of view: nothing on one side
        axes = [axis for axis in (1, 2, 3) if image.shape[axis] > 1]
        axis, keep = axes[int(uniform(0, len(axes)))], uniform(0.55, 0.95)
        length = image.shape[axis]
        cut = int(length * keep)
        image = image.clone()
        (image.narrow(axis, cut, length - cut) if uniform(0, 1) < 0.5 else image.narrow(axis, 0, length - cut)).zero_()
    return image
