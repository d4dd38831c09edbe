"""A series in, its objects out, a PACS in the middle, and back: one study in one frame of reference.

The server is Orthanc, of Debian's package of this name. It is started and ended here, takes what comes from this
machine alone, and keeps it in the test's own folder.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_study import Series, explanation_of, save_quickly, write_series

from XAICLIPLib import imaging

PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
STARTS_WITHIN_S = 60


@dataclass(frozen=True)
class Archive:
    """A running Orthanc."""

    http: int
    dicom: int

    def ask(self, path: str, data: bytes | None = None) -> bytes:
        """Ask its REST interface."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=data)
        request.add_header("Authorization", "Basic " + base64.b64encode(b"test:test").decode())
        # Without the proxies of the environment: the server is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def listing(self, path: str) -> Any:
        return json.loads(self.ask(path))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    if PROGRAM is None:
        pytest.skip("Orthanc is not installed (on Debian: apt install orthanc)")
    folder = tmp_path_factory.mktemp("orthanc")
    server = Archive(free_port(), free_port())
    configuration = {
        "Name": "XAI-CLIP test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": server.http,
        "DicomPort": server.dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"test": "test"},
        "DicomServerEnabled": True,
        "HttpBindAddresses": ["127.0.0.1"],
        "DicomAlwaysAllowStore": False,
        "DicomCheckModalityHost": True,
        "DicomModalities": {"sender": ["DCMSEND", "127.0.0.1", 104]},
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    log = (folder / "log").open("wb")
    process = subprocess.Popen([PROGRAM, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
    try:
        until = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                server.ask("/system")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < until, "Orthanc did not answer"
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass(frozen=True)
class Sent:
    series: Series
    saliency: np.ndarray
    objects: dict[str, Path]


@pytest.fixture
def made(tmp_path: Path) -> Sent:
    rng = np.random.default_rng(4)
    turned = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.2, 0.1, -0.3).GetMatrix(), (3, 3))
    scan = write_series(tmp_path / "scan", rng.integers(-900, 900, (7, 8, 9)), (5, -10, 20), turned, (0.9, 1.1, 3.0))
    saliency, target = rng.normal(0, 0.1, (7, 8, 9)).astype(np.float32), np.zeros((7, 8, 9))
    target[2:5, 3:6, 3:7] = 1
    explained = explanation_of(imaging.read_scan(tmp_path / "scan"), saliency, target, target)
    return Sent(scan, saliency, save_quickly(explained, tmp_path / "dicom"))


@pytest.mark.parametrize("way", ["upload", "dcmsend"])
def test_what_is_sent_comes_back_in_the_same_study(way: str, made: Sent, archive: Archive, tmp_path: Path) -> None:
    files = [*made.series.folder.iterdir(), *made.objects.values()]
    if way == "upload":
        for path in files:
            archive.ask("/instances", path.read_bytes())
    else:
        program = shutil.which("dcmsend")
        if program is None:
            pytest.skip("dcmsend is not installed (on Debian: apt install dcmtk)")
        command = [program, "127.0.0.1", str(archive.dicom), *map(str, files)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    studies = {
        name: study
        for name in archive.listing("/studies")
        if (study := archive.listing(f"/studies/{name}"))["MainDicomTags"]["StudyInstanceUID"] == made.series.study
    }
    ((name, study),) = studies.items()
    assert len(study["Series"]) == 1 + len(made.objects)
    assert study["PatientMainDicomTags"]["PatientID"] == "PID-4711"

    (tmp_path / "back.zip").write_bytes(archive.ask(f"/studies/{name}/archive"))
    read = imaging.read_scan(tmp_path / "back.zip")  # our objects lie among the slices, and are passed over
    expected = imaging.read_scan(made.series.folder)
    assert imaging.same_geometry(read.image, expected.image)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(read.image), sitk.GetArrayViewFromImage(expected.image))
    with zipfile.ZipFile(tmp_path / "back.zip") as content:
        content.extractall(tmp_path / "back")
    back = [pydicom.dcmread(path) for path in (tmp_path / "back").rglob("*") if path.is_file()]
    maps = [found for found in back if found.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"]
    assert [found.FrameOfReferenceUID for found in maps] == [made.series.frame_of_reference]
    np.testing.assert_array_equal(maps[0].pixel_array, made.saliency)
    sent = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}
    assert {str(found.SOPInstanceUID) for found in back} == sent
