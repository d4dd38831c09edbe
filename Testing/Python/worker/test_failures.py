"""What the user is told of a failure, and that no log tells of a patient."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.worker.failures import failure
from XAICLIPLib.worker.protocol import Explain, Mask

REQUEST = Explain(
    id=5, volume="/data/SMITH^JOHN/1950-01-01 ct.nrrd", prompt="liver", region=Mask("/data/JONES/mask.nrrd")
)
PRIVATE = ("SMITH", "JOHN", "1950", "JONES")


def raised(error: BaseException) -> Exception:
    """The error as it is caught: with a traceback."""
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (InputError("The scan is flat: give another."), "input", "The scan is flat: give another."),
        (Cancelled("Cancelled."), "cancelled", "Cancelled."),
        (ModuleNotFoundError("No module named 'monai'", name="monai"), "missing package", "monai"),
        (ImportError("libcudart.so: cannot open\nmore"), "missing package", "libcudart.so: cannot open)"),
        (
            MemoryError(),
            "memory",
            "of this computer ran out: give a part of the scan with fewer slices, or",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            "memory",
            "memory of the GPU ran out: choose --device cpu, or",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/out/x"),
            "input",
            "/out/x cannot be read or written (No sp",
        ),
        (KeyError("spacing"), "internal", "KeyError in test_failures.py, line"),
        (RuntimeError("CUDA error: no kernel image\nhttps://x"), "internal", "CUDA error: no kernel image"),
    ],
)
def test_each_failure_has_its_kind_and_one_sentence(error: Exception, kind: str, said: str) -> None:
    reply = failure(raised(error), REQUEST)
    assert (reply.id, reply.kind) == (5, kind)
    assert said in reply.message
    assert "\n" not in reply.message
    assert failure(raised(error), None).id is None


def test_only_a_mistake_of_ours_is_logged_with_where_it_arose(capsys: pytest.CaptureFixture[str]) -> None:
    failure(raised(InputError("no")), REQUEST)
    assert capsys.readouterr() == ("", "")
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("shapes 2x3 and 4x5") from None
    except ValueError as caught:
        caught.__suppress_context__ = False
        failure(caught, REQUEST)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.index("ValueError: shapes 2x3 and 4x5") < said.err.index("KeyError: 'first'")
    assert 'raise KeyError("first")' in said.err


@pytest.mark.parametrize("name", [REQUEST.volume, "/data/JONES", "1950-01-01 ct.nrrd", "series of SMITH^JOHN", "a/b"])
def test_an_error_that_quotes_a_path_is_not_quoted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise KeyError(name)
        except KeyError as first:
            raise ValueError(f"cannot use {name}") from first
    except ValueError as caught:
        reply = failure(caught, REQUEST)
    log = capsys.readouterr().err
    assert reply.kind == "internal"
    assert "ValueError" in log
    assert "KeyError" in log
    for text in (reply.message, log):
        assert name not in text
        assert not any(part in text for part in PRIVATE)


def test_an_error_while_a_file_is_read_may_quote_its_header_and_is_not_quoted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = TypeError("tag PatientName is DOE")

    def read(*_: object, **__: object) -> sitk.Image:
        raise error

    path = tmp_path / "scan.nrrd"
    sitk.WriteImage(sitk.Image(5, 5, 5, sitk.sitkUInt8), str(path))
    monkeypatch.setattr(sitk, "ReadImage", read)
    with pytest.raises(TypeError) as caught:
        imaging.read_volume(path)
    reply = failure(caught.value, REQUEST)
    log = capsys.readouterr().err
    assert "DOE" not in reply.message + log
    assert "volumes.py" in log


def test_verbose_logs_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    reply = failure(raised(ValueError(f"cannot use {REQUEST.volume}")), REQUEST, verbose=True)
    assert REQUEST.volume in capsys.readouterr().err
    assert REQUEST.volume not in reply.message


def test_no_cpu_is_advised_where_it_is_the_cpu_that_is_full() -> None:
    host, gpu = (
        failure(raised(error), REQUEST) for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried 2 GiB"))
    )
    assert "cpu" not in host.message and [way["kind"] for way in host.ways or ()] == ["crop"]
    assert [way["kind"] for way in gpu.ways or ()] == ["device", "crop"]
    assert all(way["words"] in reply.message for reply in (host, gpu) for way in reply.ways or ())


def test_the_ways_out_of_an_error_go_with_it() -> None:
    from XAICLIPLib.errors import TRUST, InputError, downloading

    error = InputError(f"No: {TRUST}, or {downloading('net')}.", TRUST, downloading("net"))
    reply = failure(error, None)
    assert reply.ways == (
        {"kind": "trust", "words": "say so with --trust", "subject": ""},
        {"kind": "download", "words": "run `xaiclip models download net`", "subject": "net"},
    )
    assert all(way["words"] in reply.message for way in reply.ways)
    assert failure(InputError("No."), None).ways is None
