"""Where the frames of the objects lie: on the slices of the scan, each on its own.

A volume may hold the same voxels in another order of axes, or along flipped ones, as viewers like to: they are put back
into the order of the slices, by where they lie in the patient and never by their place in an array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.dicom.source import DicomSource

NEAR = 0.1
"""How far a voxel may lie from where a slice has it, in edges of voxels: positions in headers are rounded."""


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of an object, LPS in mm.

    Attributes
    ----------
    source
        The slices of the scan; frame ``k`` is made of slice ``k``.
    positions
        (K, 3): of the first pixel of each frame.
    """

    source: DicomSource
    positions: NDArray[np.float64]

    @classmethod
    def of(cls, source: DicomSource) -> Frames:
        """The frames of a scan: where its slices lie, or on the straight grid where these are tilted."""
        if source.straightened:
            steps = source.axes[:, 2] * source.spacing[2]
            return cls(source, np.array(source.origin) + np.arange(source.size[2])[:, None] * steps)
        return cls(source, np.array([item.position for item in source.slices], dtype=np.float64))

    @property
    def orientation(self) -> tuple[float, ...]:
        """Directions of a row and of a column."""
        return tuple(float(value) for value in self.source.axes[:, :2].T.ravel())

    def pixels(self, image: sitk.Image, name: str = "map") -> NDArray[np.generic]:
        """The voxels of a volume as frames: (K, rows, columns).

        Raises
        ------
        InputError
            The volume does not lie on the grid of the scan.
        """
        directions = np.reshape(image.GetDirection(), (3, 3))
        agreement = self.source.axes.T @ directions
        axes = np.abs(agreement).argmax(axis=1)  # of each axis of the scan, the one of the volume along it
        voxels = sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)
        if sorted(axes.tolist()) != [0, 1, 2]:
            raise _elsewhere(name)
        voxels = voxels.transpose(*axes)
        flipped = tuple(axis for axis in range(3) if agreement[axis, axes[axis]] < 0)
        voxels = np.flip(voxels, flipped)
        if voxels.shape != self.source.size or not self._covers(image, axes, flipped):
            raise _elsewhere(name)
        return voxels.transpose(2, 1, 0)

    def _covers(self, image: sitk.Image, axes: NDArray[np.intp], flipped: tuple[int, ...]) -> bool:
        """Whether the corners of a volume lie where those of the scan do, with its axes reordered like this."""
        size = np.array(self.source.size)
        near = NEAR * min(self.source.spacing)
        for corner in np.stack(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij"), -1).reshape(-1, 3):
            index = np.zeros(3)
            for axis in range(3):
                index[axes[axis]] = size[axis] - 1 - corner[axis] if axis in flipped else corner[axis]
            there = image.TransformContinuousIndexToPhysicalPoint(index.tolist())
            here = np.array(self.source.origin) + self.source.axes @ (corner * self.source.spacing)
            if np.linalg.norm(np.array(there) - here) > near:
                return False
        return True


def put_in_order(made: Dataset, normal: NDArray[Any]) -> None:
    """Order the frames of each segment along the normal of the image plane, by which rows × columns turn right.

    Every frame says where it lies, and any order is allowed. `highdicom` writes the opposite one, of which readers that
    look at the first frame alone, and step along the normal, make a mirror image.
    """
    groups = list(made.PerFrameFunctionalGroupsSequence)
    heights = np.round([np.dot(group.PlanePositionSequence[0].ImagePositionPatient, normal) for group in groups], 4)
    numbers = [
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        if "SegmentIdentificationSequence" in group
        else 0
        for group in groups
    ]
    order = np.lexsort((heights, np.array(numbers)))
    _, ranks = np.unique(heights, return_inverse=True)
    for group, rank in zip(groups, ranks, strict=True):
        content = group.FrameContentSequence[0]
        *before, _ = np.atleast_1d(content.DimensionIndexValues).tolist()
        content.DimensionIndexValues = [*before, int(rank) + 1]
    made.PerFrameFunctionalGroupsSequence = [groups[place] for place in order]
    size = int(made.Rows) * int(made.Columns)
    if "FloatPixelData" in made:
        pixels = np.frombuffer(made.FloatPixelData, dtype="<f4").reshape(len(groups), size)
        made.FloatPixelData = pixels[order].tobytes()
        return
    bits = np.unpackbits(np.frombuffer(made.PixelData, np.uint8), count=len(groups) * size, bitorder="little")
    packed = np.packbits(bits.reshape(len(groups), size)[order], bitorder="little").tobytes()
    made.PixelData = packed + b"\0" * (len(packed) % 2)


def _elsewhere(name: str) -> InputError:
    return InputError(
        f"The {name} does not lie on the grid of the DICOM series: give the series that was explained, as it is, "
        "without a transform."
    )
