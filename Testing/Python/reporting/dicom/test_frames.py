"""Map and segments lie in the patient where they were found, however the series lies, for every reader."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path

import dicom_orientations as orientations
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_orientations import Lie
from dicom_study import write_series

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.dicom.source import DicomSource
from XAICLIPLib.reporting.dicom.frames import Frames

LIES = [lie for lie in orientations.lies() if lie.oblique and lie.anisotropic]
"""8 flips × 3 orders × both orders of the files; Testing/benchmarks/dicom.py checks all 192."""


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 2, 0)])
def test_every_voxel_lies_where_it_lay_for_pydicom_and_highdicom(order: tuple[int, int, int], tmp_path: Path) -> None:
    lies = [lie for number, lie in enumerate(LIES) if lie.order == order and number // 2 % 2 == number % 2]
    assert {lie.signs for lie in lies} == set(itertools.product((1, -1), repeat=3))
    for number, lie in enumerate(lies):
        case = orientations.make(lie, tmp_path / f"{number}")
        orientations.by_pydicom(case)
        orientations.by_highdicom(case)
    print(f"{len(lies)} series that lie in different ways, {order}: every voxel in its place")


def test_every_voxel_lies_where_it_lay_for_dcmqi(tmp_path: Path) -> None:
    if not Path(shutil.which("paramap2itkimage", path=str(Path(sys.executable).parent)) or "").is_file():
        pytest.skip("dcmqi is not installed")
    signs = itertools.product((1, -1), repeat=3)
    orders = itertools.cycle([(0, 1, 2), (0, 2, 1), (1, 2, 0)])
    lies = [Lie(order, sign, True, True, sign[0] > 0) for sign, order in zip(signs, orders, strict=False)]
    for number, lie in enumerate(lies):
        orientations.by_dcmqi(orientations.make(lie, tmp_path / f"{number}"))
    print(f"{len(lies)} series that lie in different ways, read back by dcmqi: every voxel in its place")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DicomSource:
    folder = tmp_path_factory.mktemp("scan")
    values = np.random.default_rng(1).integers(0, 500, (5, 6, 7))
    write_series(folder, values, (1, 2, 3), orientations.OBLIQUE, (0.8, 1.3, 2.5))
    return imaging.read_dicom_source(folder)


def test_a_volume_with_other_axes_is_put_back_onto_the_slices(source: DicomSource) -> None:
    """Viewers hold volumes along axes of their own: all 48 orders and signs of them give the same frames."""
    frames = Frames.of(source)
    rng = np.random.default_rng(2)
    image = sitk.GetImageFromArray(rng.normal(size=source.size[::-1]).astype(np.float32))
    image.SetOrigin(source.origin)
    image.SetSpacing(source.spacing)
    image.SetDirection(source.axes.ravel().tolist())
    expected = sitk.GetArrayFromImage(image)
    ways = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))
    assert len(ways) == 48
    for order, flips in ways:
        turned = sitk.Flip(sitk.PermuteAxes(image, order), flips)
        np.testing.assert_array_equal(frames.pixels(turned), expected)


@pytest.mark.parametrize("change", ["shifted by a voxel", "turned", "scaled", "cut"])
def test_a_volume_that_lies_elsewhere_is_refused(source: DicomSource, change: str) -> None:
    image = sitk.Image(source.size, sitk.sitkFloat32)
    image.SetOrigin(source.origin)
    image.SetSpacing(source.spacing)
    image.SetDirection(source.axes.ravel().tolist())
    Frames.of(source).pixels(image)
    if change == "shifted by a voxel":
        image.SetOrigin((np.array(source.origin) + source.axes[:, 0] * source.spacing[0]).tolist())
    elif change == "turned":
        turn = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0, 0, 0.1).GetMatrix(), (3, 3))
        image.SetDirection((turn @ source.axes).ravel().tolist())
    elif change == "scaled":
        image.SetSpacing((source.spacing[0] * 1.1, *source.spacing[1:]))
    else:
        image = image[1:]
    with pytest.raises(InputError, match="does not lie on the grid of the DICOM series"):
        Frames.of(source).pixels(image)
