"""Series that lie in the patient in every way, and objects of them that other programs read.

The value of a voxel is a function of where it lies in the patient. So every reader can be asked, of each voxel, whether
it has it where it is, whatever the order of axes, slices and frames.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import SimpleITK as sitk
from dicom_study import explanation_of, write_series

from XAICLIPLib import imaging
from XAICLIPLib.reporting.dicom import codes
from XAICLIPLib.reporting.dicom.parametric_map import parametric_map
from XAICLIPLib.reporting.dicom.segmentation import segmentation, segments_of
from XAICLIPLib.reporting.dicom.study import Study

SIZE = (7, 6, 5)
"""Columns, rows, slices."""

CUE = (5, 1, 3)
"""Column, row and slice of the planted cue."""

REACH_MM = 6.17
"""How far the island around the cue reaches: over several slices, and to no voxel exactly."""

CENTRE = np.array([12.0, -35.0, 130.0])
OBLIQUE = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix(), (3, 3))


@dataclass(frozen=True)
class Lie:
    """How a series lies: the patient axes of row, column and slice order, their signs, and what else may differ."""

    order: tuple[int, int, int]
    signs: tuple[int, int, int]
    oblique: bool
    anisotropic: bool
    backwards: bool

    @property
    def axes(self) -> np.ndarray:
        """Directions along a row, along a column, and from slice to slice as they are numbered."""
        straight = np.zeros((3, 3))
        for axis, (along, sign) in enumerate(zip(self.order, self.signs, strict=True)):
            straight[along, axis] = sign
        return OBLIQUE @ straight if self.oblique else straight

    @property
    def spacing(self) -> tuple[float, float, float]:
        return (0.8, 1.3, 2.5) if self.anisotropic else (1.5, 1.5, 1.5)


def lies() -> Iterator[Lie]:
    """8 flips × 3 orders × straight and oblique × equal and unequal spacing × both orders of the files."""
    orders = ((0, 1, 2), (0, 2, 1), (1, 2, 0))  # axial, coronal, sagittal
    signs = itertools.product((1, -1), repeat=3)
    for order, sign, *others in itertools.product(orders, signs, *[(False, True)] * 3):
        yield Lie(order, sign, *others)


def pattern(points: np.ndarray) -> np.ndarray:
    """The value of each place (..., 3) in the patient, mm LPS; no two voxels of a series have the same."""
    return 0.4 * np.sin(points @ np.array([0.31, 0.17, 0.23]) + 0.5) + 0.05 * np.cos(
        points @ np.array([1.1, -0.7, 0.9])
    )


def grid(origin: np.ndarray, steps: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Places (k, j, i, 3) of a grid; the columns of ``steps`` lead from voxel to voxel along i, j and k."""
    k, j, i = np.meshgrid(*[np.arange(n) for n in size[::-1]], indexing="ij")
    return origin + np.stack([i, j, k], -1) @ steps.T


@dataclass(frozen=True)
class Case:
    """A series, the map and the segments made of it, and where the cue was planted."""

    cue: np.ndarray
    spacing: tuple[float, float, float]
    map: Path
    segments: Path


def make(lie: Lie, folder: Path) -> Case:
    """Write a series that lies so, read it as any scan, and write a map of `pattern` and an island around the cue."""
    steps = lie.axes * lie.spacing
    origin = CENTRE - steps @ ((np.array(SIZE) - 1) / 2)
    cue = origin + steps @ CUE
    values = np.random.default_rng(3).integers(-900, 900, SIZE[::-1])
    write_series(folder / "scan", values, origin, lie.axes, lie.spacing, names_backwards=lie.backwards)
    scan = imaging.read_scan(folder / "scan")
    assert scan.image[scan.image.TransformPhysicalPointToIndex(cue.tolist())] == values[CUE[::-1]]
    places = grid(
        np.array(scan.image.GetOrigin()),
        np.reshape(scan.image.GetDirection(), (3, 3)) * scan.image.GetSpacing(),
        scan.image.GetSize(),
    )
    target = near(places, cue)
    filled = [frame for frame in target if frame.any()]
    assert len(filled) > 1 and not np.array_equal(filled[0], filled[-1]), "a mirror image would not be told"
    explanation = explanation_of(scan, pattern(places), target, np.ones_like(target))
    study = Study.of(explanation.source, explanation.record, anonymous=False)
    made = {
        "map": parametric_map(
            study,
            explanation.saliency,
            number=0,
            label="SALIENCY",
            quantity=codes.SALIENCY,
            explanation="score lost",
            description="saliency",
            colour_range=(-1, 1),
        ),
        "segments": segmentation(
            study,
            segments_of(explanation.record, explanation.prediction, explanation.region.mask),
            number=1,
            description="segments",
        ),
    }
    for name, written in made.items():
        written.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return Case(cue, lie.spacing, folder / "map.dcm", folder / "segments.dcm")


def near(places: np.ndarray, cue: np.ndarray) -> np.ndarray:
    """Where a place is near the cue and has a value not much below its: an island that no mirror leaves as it is."""
    inside = (np.linalg.norm(places - cue, axis=-1) < REACH_MM) & (pattern(places) > pattern(cue) - 0.1)
    return np.asarray(inside)


def check_values(places: np.ndarray, values: np.ndarray) -> None:
    """Every value is that of its place in the patient."""
    np.testing.assert_allclose(values, pattern(places), atol=2e-5)


def check_mask(places: np.ndarray, mask: np.ndarray, cue: np.ndarray) -> None:
    """The mask is the island around the cue, whole and nowhere else."""
    np.testing.assert_array_equal(mask != 0, near(places, cue))
    assert mask.any()
    assert (np.linalg.norm(places[mask != 0] - cue, axis=-1) < REACH_MM).all()


# --- readers ----------------------------------------------------------------------------------------------------------


def by_pydicom(case: Case) -> None:
    """By the attributes of each frame, as the standard says it (PS3.3, C.7.6.2.1.1)."""
    made = pydicom.dcmread(case.map)
    for places, frame in zip(frame_places(made), made.pixel_array, strict=True):
        check_values(places, frame)
    made = pydicom.dcmread(case.segments)
    found = np.zeros(0)
    for group, places, frame in zip(
        made.PerFrameFunctionalGroupsSequence, frame_places(made), made.pixel_array, strict=True
    ):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1:
            np.testing.assert_array_equal(frame != 0, near(places, case.cue))
            found = np.append(found, frame.sum())
    assert found.sum() > 0


def frame_places(made: pydicom.Dataset) -> Iterator[np.ndarray]:
    """The places (rows, columns, 3) of the pixels of each frame."""
    shared = made.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows, columns = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    steps = np.stack([orientation[:3] * columns, orientation[3:] * rows, np.zeros(3)], axis=1)
    for group in made.PerFrameFunctionalGroupsSequence:
        first = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        yield grid(first, steps, (made.Columns, made.Rows, 1))[0]


def by_highdicom(case: Case) -> None:
    """By the volume and the affine that highdicom makes of the frames."""
    volume = hd.imread(case.map).get_volume()
    check_values(volume_places(volume), volume.array)
    volume = hd.seg.segread(case.segments).get_volume(segment_numbers=[1], combine_segments=True)
    check_mask(volume_places(volume), volume.array, case.cue)


def volume_places(volume: hd.Volume) -> np.ndarray:
    """The places of highdicom's volume, whose affine is that of its indices as they are (k, j, i)."""
    return grid(volume.affine[:3, 3], volume.affine[:3, 2::-1], volume.spatial_shape[::-1])


def by_dcmqi(case: Case) -> None:
    """By the volumes that dcmqi converts the objects to, which SimpleITK reads."""
    folder = case.map.parent
    for program, path, prefix in (
        ("paramap2itkimage", case.map, "map"),
        ("segimage2itkimage", case.segments, "segment"),
    ):
        run(program, "--inputDICOM", path, "--outputDirectory", folder, "--prefix", prefix, "--outputType", "nrrd")
    image = sitk.ReadImage(str(folder / "map-pmap.nrrd"))
    check_values(image_places(image), sitk.GetArrayFromImage(image))
    image = sitk.ReadImage(str(folder / "segment-1.nrrd"))
    check_mask(image_places(image), sitk.GetArrayFromImage(image), case.cue)


def image_places(image: sitk.Image) -> np.ndarray:
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    return grid(np.array(image.GetOrigin()), steps, image.GetSize())


def run(program: str, *arguments: object) -> str:
    """Run a program of the environment; what it says."""
    path = Path(sys.executable).with_name(program)
    ended = subprocess.run([str(path), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{program} ended with {ended.returncode}: {ended.stdout[-500:]}{ended.stderr[-500:]}"
    return ended.stdout + ended.stderr
