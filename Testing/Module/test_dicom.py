"""Save DICOM: for a scan of Slicer's DICOM database, into its study and back into the database."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_study import Series, explanation_of, write_series
from PIL import Image

from XAICLIPLib import imaging

OBLIQUE = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix(), (3, 3))
SIZE = (8, 10, 12)
"""Slices, rows, columns: even numbers, so that the middle voxel of a mirror image is another one."""


@pytest.fixture
def series(tmp_path: Path) -> Series:
    values = np.random.default_rng(2).integers(-900, 900, SIZE)
    return write_series(tmp_path / "scan", values, (12, -30, 40), OBLIQUE, (1.5, 2.0, 3.0))


@pytest.fixture
def scan(scene: Any, slicer_host: ModuleType, series: Series) -> Any:
    """The volume that Slicer makes of a series, with its slices in the other order: it may hold them as it likes."""
    image = sitk.Flip(imaging.read_volume(series.folder), (False, False, True))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    slicer_host.util.updateVolumeFromArray(node, sitk.GetArrayFromImage(image))
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    toLps = np.vstack([np.column_stack([steps, image.GetOrigin()]), [0, 0, 0, 1]])
    node.SetIJKToRASMatrix(slicer_host.util.vtkMatrixFromArray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ toLps))
    node.CreateDefaultDisplayNodes()
    node.SetAttribute("DICOM.instanceUIDs", " ".join(series.instances))
    return node


@pytest.fixture
def added(slicer_host: ModuleType, series: Series, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Slicer's database with the series in it; gives what is added to it."""
    files = dict(zip(series.instances, map(str, sorted(series.folder.iterdir())), strict=True))
    database = SimpleNamespace(isOpen=True, fileForInstance=lambda uid: files.get(uid, ""))
    monkeypatch.setattr(slicer_host, "dicomDatabase", database, raising=False)
    calls: list[tuple[Any, ...]] = []
    library = ModuleType("DICOMLib")
    library.DICOMUtils = SimpleNamespace(  # type: ignore[attr-defined]
        importDicom=lambda folder, _database, copyFiles: calls.append((folder, copyFiles))
    )
    monkeypatch.setitem(sys.modules, "DICOMLib", library)
    return calls


@pytest.fixture
def shown(layout_manager: Any, panel: Any, session: Any, scan: Any) -> Any:
    """A finished explanation of the scan, with a record as the library writes it."""
    from XAICLIPModule.scene import export
    from XAICLIPModule.worker.question import Question

    image = export.imageFromVolume(scan)
    empty = np.zeros(SIZE)
    record = dict(explanation_of(imaging.Scan(image, modality="CT"), empty, empty, empty, structure="liver").record)
    record["target"] = {**record["target"], "label": 6}
    panel.logic.startExplaining(Question(scan, "liver"))
    session.explain(scan, **record)
    picture = io.BytesIO()
    Image.new("RGB", (64, 48)).save(picture, "PNG")
    panel.panel.results.explanation().figure.write_bytes(picture.getvalue())
    return panel


def save(panel: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qt

    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_arguments: str(folder))
    panel.ui.dicomButton.click()


@pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom is not installed")
def test_the_map_comes_into_the_study_where_it_lies_in_the_scene(
    shown: Any,
    session: Any,
    scan: Any,
    series: Series,
    added: list[tuple[Any, ...]],
    slicer_host: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pydicom
    import vtk

    from XAICLIPLib.worker.protocol import SaveDicom
    from XAICLIPLib.worker.service import RequestHandler

    shown.panel.results._show()
    assert shown.ui.dicomButton.isEnabled()
    save(shown, tmp_path / "objects", monkeypatch)
    asked = session.requests[-1]
    assert isinstance(asked, SaveDicom)
    assert [Path(path).parent for path in asked.images] == [series.folder] * SIZE[0]
    (tmp_path / "private").mkdir()
    handler = RequestHandler(tmp_path / "private", lambda _reply: None)
    reply = handler.compute(asked, lambda: False, lambda: False)
    made = pydicom.dcmread(reply.files["parametric_map"])
    assert (made.StudyInstanceUID, made.FrameOfReferenceUID) == (series.study, series.frame_of_reference)
    frame, row, column = np.unravel_index(made.pixel_array.argmax(), made.pixel_array.shape)
    first = np.array(made.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0].ImagePositionPatient)
    there = first + OBLIQUE[:, 0] * 1.5 * column + OBLIQUE[:, 1] * 2.0 * row
    saliency = slicer_host.util.arrayFromVolume(shown.ui.resultSelector.currentNode())
    k, j, i = (int(index) for index in np.unravel_index(saliency.argmax(), saliency.shape))
    matrix = vtk.vtkMatrix4x4()
    scan.GetIJKToRASMatrix(matrix)
    ras = matrix.MultiplyPoint((i, j, k, 1))
    np.testing.assert_allclose(there, [-ras[0], -ras[1], ras[2]], atol=1e-3)

    session.answer("reported", files=reply.files)
    assert added == [(str(tmp_path / "objects"), True)]
    assert "added to the DICOM database" in shown.ui.statusLabel.text
    assert str(tmp_path / "objects") in shown.ui.statusLabel.text
    assert not Path(asked.folder).exists(), "the scan does not stay behind"


def test_a_scan_that_is_not_from_the_database_says_why_it_cannot(shown: Any, scan: Any) -> None:
    scan.RemoveAttribute("DICOM.instanceUIDs")
    shown.panel.results._show()
    assert not shown.ui.dicomButton.isEnabled()
    assert "not loaded from the DICOM database" in shown.ui.dicomButton.toolTip


@pytest.mark.parametrize("case", ["no database", "closed", "file gone"])
def test_images_that_are_gone_are_told_before_anything_is_asked(
    case: str,
    shown: Any,
    session: Any,
    series: Series,
    added: list[tuple[Any, ...]],
    slicer_host: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(slicer_host.util, "errorDisplay", lambda text, **_options: told.append(text))
    if case == "no database":
        monkeypatch.delattr(slicer_host, "dicomDatabase")
    elif case == "closed":
        slicer_host.dicomDatabase.isOpen = False
    else:
        next(series.folder.iterdir()).unlink()
    before = len(session.requests)
    save(shown, tmp_path / "objects", monkeypatch)
    assert len(session.requests) == before
    assert "not in the DICOM database any more" in told[0]


@pytest.mark.parametrize("case", ["no database", "no DICOM module", "an older one"])
def test_a_slicer_without_the_dicom_module_still_writes_the_folder(
    case: str,
    module_path: Path,
    added: list[tuple[Any, ...]],
    slicer_host: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from XAICLIPModule.dicom import database

    assert database.add(tmp_path)
    if case == "no database":
        monkeypatch.delattr(slicer_host, "dicomDatabase")
    elif case == "no DICOM module":
        monkeypatch.setitem(sys.modules, "DICOMLib", None)
    else:
        monkeypatch.delattr(sys.modules["DICOMLib"].DICOMUtils, "importDicom")
    assert not database.add(tmp_path)
    assert len(added) == 1
