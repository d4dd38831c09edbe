"""Archives made to do harm are refused in one sentence, and leave nothing behind; honest ones are unpacked."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.models import archives
from XAICLIPLib.models.archives import is_archive, only_folder, unpack

CONTENTS = {"net/configs/metadata.json": b"{}", "net/models/model.pt": bytes(range(256)) * 1000, "net/empty": b""}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def zipped(path: Path, members: dict[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, content)
    return path


def taped(path: Path, members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {"zip": zipped, "tar": taped, "tar.gz": taped}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder that may be written to, in one with something that must stay."""
    (tmp_path / "outside.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "inside").mkdir()
    return tmp_path / "inside"


def refused(archive: Path, place: Path, **bounds: int) -> str:
    """The sentence that an archive is refused with, after a look that nothing was written anywhere."""
    before = snapshot(place.parent)
    with pytest.raises(InputError) as error:
        unpack(archive, place / "model", **bounds)
    assert snapshot(place.parent) == before
    text = str(error.value)
    assert text.startswith(str(archive)) and text.endswith(".") and "\n" not in text
    return text


# What is honest


@pytest.mark.parametrize("kind", MAKERS)
def test_an_honest_archive_is_unpacked_and_nothing_else_written(place: Path, kind: str) -> None:
    archive = MAKERS[kind](place / f"net.{kind}", CONTENTS)
    before = snapshot(place.parent)
    assert is_archive(archive)
    folder = unpack(archive, place / "deeper" / "model")
    assert {name: content for name, content in snapshot(folder).items() if content is not None} == CONTENTS
    after = {name: c for name, c in snapshot(place.parent).items() if not name.startswith("inside/deeper")}
    assert after == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    assert only_folder(folder) == folder / "net"
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(place.stat().st_mode)


def test_a_tar_of_a_folder_with_its_dot_and_folders_is_unpacked(place: Path) -> None:
    source = place / "source"
    (source / "models").mkdir(parents=True)
    (source / "models" / "model.pt").write_bytes(b"weights")
    with tarfile.open(place / "x.tar.gz", "w:gz") as archive:
        archive.add(source, ".")
    folder = unpack(place / "x.tar.gz", place / "model")
    assert (folder / "models" / "model.pt").read_bytes() == b"weights"


def test_a_file_that_is_no_archive_is_told_from_one(place: Path) -> None:
    for name, content in (("a.zip", b"no zip"), ("b.tar.gz", gzip.compress(b"no tar")), ("c", b"")):
        (place / name).write_bytes(content)
        assert not is_archive(place / name)
        refused(place / name, place)
    assert not is_archive(place) and not is_archive(place / "nosuch.zip")
    assert not is_archive(zipped(place / "model.pt", CONTENTS)), "PyTorch saves zip files"


def test_a_folder_that_exists_is_not_written_into(place: Path) -> None:
    (place / "model").mkdir()
    assert "exists already" in refused(zipped(place / "x.zip", CONTENTS), place)


# Names


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../outside.txt", "leads out"),
        ("a/../../outside.txt", "leads out"),
        ("a/..", "leads out"),
        ("/etc/passwd", "absolute"),
        ("//server/share/x", "absolute"),
        ("C:/windows/x", "drive letter"),
        ("C:x", "drive letter"),
        ("..\\outside.txt", "backslash"),
        ("\\\\server\\x", "backslash"),
        ("model.pt:stream", "drive letter"),
        ("a\nb", "control"),
        ("con", "not every system"),
        ("models/NUL.pt", "not every system"),
        ("models./x", "not every system"),
        ("model.pt ", "not every system"),
        ("x" * 256, "not every system"),
    ],
)
def test_a_name_that_could_lead_elsewhere_is_refused(place: Path, kind: str, name: str, told: str) -> None:
    archive = MAKERS[kind](place / f"x.{kind}", {"good": b"good", name: b"bad"})
    assert told in refused(archive, place)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("Model.pt", "model.PT"), "capitals"),
        (("Models/a", "models/b"), "capitals"),
        (("a", "a/b"), "twice"),
        (("a/b", "a"), "twice"),
        (("stra\u00dfe", "STRASSE"), "capitals"),
        (("\u00e9", "e\u0301"), "capitals"),
        (("a/b", "a/./b"), "twice"),
        (("a/b", "a//b"), "twice"),
    ],
)
def test_names_that_collide_are_refused(place: Path, kind: str, names: tuple[str, ...], told: str) -> None:
    assert told in refused(MAKERS[kind](place / f"x.{kind}", dict.fromkeys(names, b"x")), place)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(place: Path) -> None:
    with zipfile.ZipFile(place / "x.zip", "w") as archive:
        archive.writestr("model.pt", b"first")
        archive.writestr("model.pt", b"second")
    assert "twice" in refused(place / "x.zip", place)
    with tarfile.open(place / "x.tar", "w") as tape:
        for content in (b"first", b"second"):
            info = tarfile.TarInfo("model.pt")
            info.size = len(content)
            tape.addfile(info, io.BytesIO(content))
    assert "twice" in refused(place / "x.tar", place)


# Kinds


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK])
def test_a_link_or_device_in_a_zip_is_refused(place: Path, kind: int) -> None:
    archive = zipped(place / "x.zip", {"link": b"../outside.txt"}, external_attr=(kind | 0o777) << 16, create_system=3)
    assert "link, a device" in refused(archive, place)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
)
def test_a_link_or_device_in_a_tar_is_refused(place: Path, suffix: str, kind: bytes) -> None:
    def change(info: tarfile.TarInfo) -> None:
        if info.name == "bad":
            info.type, info.linkname = kind, "../outside.txt"

    archive = taped(place / f"x.{suffix}", {"good": b"good", "bad": b"", "bad/x": b"through the link"}, change)
    assert "link, a device" in refused(archive, place)


def test_an_encrypted_zip_is_refused(place: Path) -> None:
    archive = zipped(place / "x.zip", {"model.pt": b"weights"})
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(signature) + offset
        content[at] |= 1
    archive.write_bytes(content)
    assert "encrypted" in refused(archive, place)


# Sizes


def claim(archive: Path, size: int) -> None:
    """Let the headers of a zip's only member claim another size."""
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + offset
        content[at : at + 4] = struct.pack("<I", size)
    archive.write_bytes(content)


def test_a_zip_that_claims_ten_gb_is_refused(place: Path) -> None:
    with zipfile.ZipFile(place / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.pt", bytes(1000))
        archive.filelist[0].file_size = 10_000_000_000  # written into the directory at the end, as ZIP64
    with zipfile.ZipFile(place / "x.zip") as archive:
        assert archive.infolist()[0].file_size == 10_000_000_000
    assert "shrunk more than 200 times" in refused(place / "x.zip", place)
    assert "larger than 5 GB" in refused(place / "x.zip", place, most_bytes=5_000_000_000)


@pytest.mark.parametrize("size", [0, 999, 1001, 50_000_000])
def test_a_zip_whose_member_has_another_size_than_it_claims_is_refused(place: Path, size: int) -> None:
    archive = zipped(place / "x.zip", {"model.pt": bytes(range(250)) * 4})
    claim(archive, size)
    assert "damaged" in refused(archive, place)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_real_bomb_is_refused_before_it_goes_off(place: Path, kind: str) -> None:
    zeros = bytes(archives.LARGE + 1)
    assert "shrunk" in refused(MAKERS[kind](place / f"x.{kind}", {"model.pt": zeros}), place)


def test_a_tar_that_claims_ten_gb_is_refused(place: Path) -> None:
    info = tarfile.TarInfo("model.pt")
    info.size = 10_000_000_000
    for name, pack in (("x.tar", bytes), ("x.tar.gz", gzip.compress)):
        (place / name).write_bytes(pack(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)))
        refused(place / name, place)
    assert "larger than 5 GB" in refused(place / "x.tar", place, most_bytes=5_000_000_000)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_whose_header_asks_for_much_memory_is_refused(place: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 8_000_000_000
    (place / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    assert not is_archive(place / "x.tar")
    assert "damaged" in refused(place / "x.tar", place)


@pytest.mark.parametrize("kind", MAKERS)
def test_too_many_members_are_refused(place: Path, kind: str) -> None:
    archive = MAKERS[kind](place / f"x.{kind}", {str(number): b"" for number in range(101)})
    assert "more than 100 members" in refused(archive, place, most_members=100)
    assert len(list(unpack(archive, place / "model", most_members=101).iterdir())) == 101


@pytest.mark.parametrize("kind", MAKERS)
def test_an_archive_that_was_cut_off_is_refused(place: Path, kind: str) -> None:
    archive = MAKERS[kind](place / f"x.{kind}", CONTENTS)
    content = archive.read_bytes()
    for length in (len(content) // 3, len(content) // 2, len(content) * 3 // 4 // 512 * 512):
        archive.write_bytes(content[:length])
        refused(archive, place)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_with_a_flipped_bit_is_refused(place: Path, kind: str) -> None:
    archive = MAKERS[kind](place / f"x.{kind}", {"model.pt": bytes(range(256)) * 1000})
    content = bytearray(archive.read_bytes())
    content[len(content) // 3] ^= 0x10
    archive.write_bytes(content)
    refused(archive, place)


def test_a_full_disk_is_told_before_anything_is_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(place / "x.zip", CONTENTS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    assert "MB left" in refused(archive, place)


def test_a_disk_that_fills_up_leaves_nothing_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(place / "x.zip", CONTENTS)
    write = archives._write_member

    def full(opened: zipfile.ZipFile | tarfile.TarFile, member: archives._Member, path: Path) -> None:
        write(opened, member, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "_write_member", full)
    assert "No space left on device" in refused(archive, place)


def test_the_contents_of_very_deep_folders_are_found(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a"] * 1100)
    folder = tmp_path
    for _ in range(1100):
        folder = folder / "a"
        folder.mkdir()
    try:
        assert only_folder(tmp_path) == deep
    finally:  # pytest's own clearing up is recursive, and would fail on it some runs later
        while folder != tmp_path:
            folder.rmdir()
            folder = folder.parent
