"""NRRD and MetaImage headers that leave out what ITK makes up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError

SIZE = (9, 11, 13)
DATA = np.random.default_rng(0).integers(-1000, 1000, SIZE[::-1]).astype("<i2")

NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "9 11 13",
    "space directions": "(0.7,0,0) (0,1.1,0) (0,0,2.5)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(1,2,3)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "1 2 3",
    "ElementSpacing": "0.7 1.1 2.5",
    "DimSize": "9 11 13",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def nrrd(path: Path, **changed: str | None) -> Path:
    """A NRRD file with fields changed, added or (None) left out; _ in names stands for a space."""
    fields = {**NRRD, **{name.replace("_", " "): value for name, value in changed.items()}}
    head = "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes(f"NRRD0004\n{head}\n".encode() + (b"" if "data file" in fields else DATA.tobytes()))
    return path


def meta(path: Path, **changed: str | None) -> Path:
    fields = {**META, **changed}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last
    head = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes(head.encode() + (DATA.tobytes() if fields["ElementDataFile"] == "LOCAL" else b""))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        imaging.read_volume(path)
    text = str(error.value)
    assert str(path) in text
    assert text.endswith(".") and "\n" not in text and ". " not in text
    return text


def test_whole_headers_are_read_where_they_say(tmp_path: Path) -> None:
    for path in (nrrd(tmp_path / "a.nrrd"), meta(tmp_path / "a.mha")):
        scan = imaging.read_scan(path)
        assert scan.oriented and not scan.notes
        assert np.array_equal(sitk.GetArrayFromImage(scan.image), DATA)
        assert np.allclose(scan.image.GetSpacing(), (0.7, 1.1, 2.5))
        assert scan.image.GetOrigin() == (1, 2, 3)


SPACINGS_ONLY = {"space": None, "space_directions": None, "space_origin": None}


@pytest.mark.parametrize("spacings", ["nan nan nan", "0.7 1.1 nan", "0.7 1.1 inf", "0.7 1.1 x", "0.7 1.1"])
def test_a_nrrd_spacing_that_is_no_number_is_refused(tmp_path: Path, spacings: str) -> None:
    text = refusal(nrrd(tmp_path / "a.nrrd", **SPACINGS_ONLY, spacings=spacings))
    assert "spacings" in text or "damaged" in text


@pytest.mark.parametrize("directions", ["(nan,0,0) (0,1.1,0) (0,0,2.5)", "(0.7,0,0) (0,1.1,0) (0,0,inf)"])
def test_nrrd_directions_that_are_no_numbers_are_refused(tmp_path: Path, directions: str) -> None:
    assert "space directions" in refusal(nrrd(tmp_path / "a.nrrd", space_directions=directions))


@pytest.mark.parametrize("origin", ["(nan,2,3)", "(1,2,inf)", "(1,2)"])
def test_a_nrrd_origin_that_is_no_number_is_refused(tmp_path: Path, origin: str) -> None:
    text = refusal(nrrd(tmp_path / "a.nrrd", space_origin=origin))
    assert "space origin" in text


def test_no_spacing_is_refused_by_the_name_of_the_field(tmp_path: Path) -> None:
    assert "no voxel spacing (neither space directions nor spacings)" in refusal(
        nrrd(tmp_path / "a.nrrd", **SPACINGS_ONLY)
    )
    assert "no voxel spacing (ElementSpacing)" in refusal(meta(tmp_path / "a.mha", ElementSpacing=None))


@pytest.mark.parametrize("spacing", ["nan nan nan", "0.7 1.1 nan", "0.7 1.1", "", "0.7 1.1 x"])
def test_a_metaimage_spacing_that_is_no_number_is_refused(tmp_path: Path, spacing: str) -> None:
    assert "ElementSpacing" in refusal(meta(tmp_path / "a.mha", ElementSpacing=spacing))


def test_no_orientation_is_told(tmp_path: Path) -> None:
    files = {
        "no space directions": nrrd(tmp_path / "a.nrrd", **SPACINGS_ONLY, spacings="0.7 1.1 2.5"),
        "no anatomical space": nrrd(tmp_path / "b.nrrd", space="3D-right-handed"),
        "no TransformMatrix": meta(tmp_path / "c.mha", TransformMatrix=None),
    }
    for reason, path in files.items():
        scan = imaging.read_scan(path)
        assert not scan.oriented
        assert f"does not say how it is oriented ({reason}), so that left, front and up are guessed" in scan.notes[0]
        assert np.allclose(scan.image.GetSpacing(), (0.7, 1.1, 2.5))


def test_other_units_than_mm_are_refused(tmp_path: Path) -> None:
    assert 'in "cm" (space units)' in refusal(nrrd(tmp_path / "a.nrrd", space_units='"cm" "cm" "cm"'))
    assert imaging.read_scan(nrrd(tmp_path / "b.nrrd", space_units='"mm" "mm" "mm"')).oriented


def test_a_header_without_its_data_file_names_it(tmp_path: Path) -> None:
    for path in (
        nrrd(tmp_path / "a.nhdr", data_file="voxels.raw"),
        meta(tmp_path / "a.mhd", ElementDataFile="voxels.raw"),
    ):
        assert "its data file voxels.raw is not there" in refusal(path)
    (tmp_path / "voxels.raw").write_bytes(DATA.tobytes())
    for name in ("a.nhdr", "a.mhd"):
        assert np.array_equal(sitk.GetArrayFromImage(imaging.read_volume(tmp_path / name)), DATA)


@pytest.mark.parametrize("shear", [7e-4, 9e-4])
def test_a_shear_by_rounding_is_made_straight_in_every_format(tmp_path: Path, shear: float) -> None:
    axis = f"{2.5 * shear:.7f}"
    for path in (
        nrrd(tmp_path / "a.nrrd", space_directions=f"(0.7,0,0) (0,1.1,0) (0,{axis},2.5)"),
        meta(tmp_path / "a.mha", TransformMatrix=f"1 0 0 0 1 0 0 {shear:.7f} 1"),
    ):
        scan = imaging.read_scan(path)
        axes = np.reshape(scan.image.GetDirection(), (3, 3))
        assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
        assert np.allclose(scan.image.GetSpacing(), (0.7, 1.1, 2.5), atol=1e-5)
        assert "off a right angle by rounding" in scan.notes[0]
