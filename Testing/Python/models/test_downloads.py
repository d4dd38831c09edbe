"""Downloads against a real server on this machine, which misbehaves in each way that servers do."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from misbehaving import Behaviour, serving

from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.models import downloads
from XAICLIPLib.models.downloads import BLOCK, FileDownload, fetch

pytest.importorskip("pooch", reason="pooch is not installed")

CONTENT = np.random.default_rng(0).bytes(1_000_000)
OTHER = np.random.default_rng(1).bytes(1_000_000)
WAY_OUT = "get it another way"


def behaving(content: bytes = CONTENT, **ways: Any) -> Behaviour:
    """A server of one file that is right, unless told otherwise."""
    return Behaviour(content, **ways)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where files are downloaded to; beside it lies something that must stay as it is."""
    (tmp_path / "outside").write_text("mine", encoding="utf-8")
    return tmp_path / "models"


def file_download(url: str, folder: Path, content: bytes = CONTENT, most: int = 2_000_000) -> FileDownload:
    return FileDownload(url, hashlib.sha256(content).hexdigest(), folder / "weights.bin", most, WAY_OUT)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def start(range_: str | None) -> int:
    """First byte that was asked for."""
    return int(range_.removeprefix("bytes=").rstrip("-")) if range_ else 0


def sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert text.endswith(f": {WAY_OUT}.") and text.startswith("http"), text
    assert "\n" not in text
    return text


def test_a_file_arrives_whole_with_its_progress(folder: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with serving(behaving()) as url:
        target = fetch(file_download(url, folder), lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert files(folder) == ["weights.bin"]
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_file_that_is_there_is_not_asked_for_again(folder: Path) -> None:
    behaviour = behaving()
    with serving(behaviour) as url:
        fetch(file_download(url, folder))
        fetch(file_download(url, folder))
    assert len(behaviour.asked) == 1


def test_a_wrong_file_in_its_place_is_replaced(folder: Path) -> None:
    folder.mkdir()
    (folder / "weights.bin").write_bytes(OTHER)
    with serving(behaving()) as url:
        assert fetch(file_download(url, folder)).read_bytes() == CONTENT


@pytest.mark.parametrize("breaks", [[1], [300_000, 300_000], [999_999], [20_000] * 8, [100_000, 0, 0, 50_000, 0, 0]])
def test_a_broken_connection_goes_on_where_it_was(folder: Path, breaks: list[int]) -> None:
    behaviour = behaving(breaks_after=list(breaks))
    with serving(behaviour) as url:
        assert fetch(file_download(url, folder)).read_bytes() == CONTENT
    assert files(folder) == ["weights.bin"]
    here = 0
    for sent, range_ in zip(breaks, behaviour.asked[1:], strict=True):
        asked = start(range_)
        assert here + sent - BLOCK < asked <= here + sent, "it asks for what it lacks, less than a block again"
        here = asked


@pytest.mark.parametrize("ways", [{"etag": "", "modified": "Wed, 25 Nov 2026 12:00:00 GMT"}, {"etag": ""}])
def test_it_goes_on_by_date_or_by_checksum_alone_where_there_is_no_etag(folder: Path, ways: dict[str, str]) -> None:
    behaviour = behaving(breaks_after=[400_000], **ways)
    with serving(behaviour) as url:
        assert fetch(file_download(url, folder)).read_bytes() == CONTENT
    assert len(behaviour.asked) == 2 and 400_000 - BLOCK < start(behaviour.asked[1]) <= 400_000


def test_an_interrupted_download_goes_on_the_next_time(folder: Path) -> None:
    behaviour = behaving()
    with serving(behaviour) as url:
        done = [0]
        with pytest.raises(Cancelled, match="next attempt goes on"):
            fetch(file_download(url, folder), lambda here, _: done.append(here), lambda: done[-1] > 200_000)
        assert files(folder) == ["weights.bin.part", "weights.bin.part-version"]
        here = (folder / "weights.bin.part").stat().st_size
        assert here == done[-1] and CONTENT.startswith((folder / "weights.bin.part").read_bytes())
        assert fetch(file_download(url, folder)).read_bytes() == CONTENT
    assert behaviour.asked == [None, f"bytes={here}-"]
    assert files(folder) == ["weights.bin"]


def test_a_part_that_is_already_whole_is_enough(folder: Path) -> None:
    behaviour = behaving()
    with serving(behaviour) as url:
        folder.mkdir()
        download = file_download(url, folder)
        download.part.write_bytes(CONTENT)
        download.version_file.write_text(f'{{"url": "{url}", "version": "\\"v1\\""}}', encoding="utf-8")
        assert fetch(download).read_bytes() == CONTENT
    assert behaviour.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_of_another_address_is_not_gone_on_with(folder: Path) -> None:
    behaviour = behaving()
    with serving(behaviour) as url:
        folder.mkdir()
        download = file_download(url, folder)
        download.part.write_bytes(OTHER[:1000])
        download.version_file.write_text(
            '{"url": "https://other/weights.bin", "version": "\\"v1\\""}', encoding="utf-8"
        )
        assert fetch(download).read_bytes() == CONTENT
    assert behaviour.asked == [None]


def test_without_ranges_it_starts_over(folder: Path) -> None:
    behaviour = behaving(ranges=False, breaks_after=[300_000, 600_000])
    with serving(behaviour) as url:
        assert fetch(file_download(url, folder)).read_bytes() == CONTENT
    assert [start(asked) > 0 for asked in behaviour.asked] == [False, True, True], "asked for the rest, it gave all"


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_between_attempts_is_taken_anew(folder: Path, if_range: bool) -> None:
    behaviour = behaving(content=OTHER, breaks_after=[300_000], changes_to=CONTENT, if_range=if_range)
    with serving(behaviour) as url:
        assert fetch(file_download(url, folder)).read_bytes() == CONTENT


def test_a_file_that_shrinks_between_attempts_is_taken_anew(folder: Path) -> None:
    small = CONTENT[:1000]
    behaviour = behaving(content=OTHER, breaks_after=[300_000], changes_to=small, if_range=False)
    with serving(behaviour) as url:
        assert fetch(file_download(url, folder, small)).read_bytes() == small


def test_another_file_than_was_meant_is_refused_and_deleted(folder: Path) -> None:
    with serving(behaving(content=OTHER)) as url, pytest.raises(InputError) as error:
        fetch(file_download(url, folder))
    assert "its SHA-256 differs" in sentence(error)
    assert files(folder) == []


def test_a_wrong_mixture_is_deleted_so_that_the_next_attempt_starts_over(folder: Path) -> None:
    behaviour = behaving(content=OTHER, etag="", breaks_after=[300_000])
    with serving(behaviour) as url:
        behaviour.changes_to = CONTENT
        behaviour.if_range = False
        download = file_download(url, folder)
        folder.mkdir()
        download.part.write_bytes(OTHER[:1000])
        download.version_file.write_text(f'{{"url": "{url}", "version": "\\"v2\\""}}', encoding="utf-8")
        behaviour.content, behaviour.etag, behaviour.breaks_after = CONTENT, '"v2"', []
        with pytest.raises(InputError, match="its SHA-256 differs"):
            fetch(download)
        assert files(folder) == []
        assert fetch(download).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [True, False])
def test_more_than_declared_is_refused_before_or_while_it_comes(folder: Path, length: bool) -> None:
    with serving(behaving(length=length)) as url, pytest.raises(InputError) as error:
        fetch(file_download(url, folder, most=500_000))
    assert "more than the 0.5 MB that the catalogue declares" in sentence(error)
    assert files(folder) == []


def test_less_than_was_meant_is_refused(folder: Path) -> None:
    with serving(behaving(content=CONTENT[:1000])) as url, pytest.raises(InputError) as error:
        fetch(file_download(url, folder))
    assert "SHA-256" in sentence(error)
    assert files(folder) == []


@pytest.mark.parametrize(("status", "told"), [(404, "404 Not Found"), (500, "500 Internal Server Error"), (403, "403")])
def test_an_error_of_the_server_is_told(folder: Path, status: int, told: str) -> None:
    with serving(behaving(status=status)) as url, pytest.raises(InputError) as error:
        fetch(file_download(url, folder))
    assert f"the server answers {told}" in sentence(error)
    assert files(folder) == []


def test_a_server_that_hangs_is_given_up(folder: Path) -> None:
    with serving(behaving(hangs=True)) as url, pytest.raises(InputError) as error:
        fetch(file_download(url, folder), timeouts_s=(0.2, 0.2))
    assert "does not answer in time" in sentence(error)


def test_a_server_that_gives_no_more_bytes_is_given_up_and_the_part_kept(folder: Path) -> None:
    behaviour = behaving(breaks_after=[2 * BLOCK, *[0] * 10])
    with serving(behaviour) as url, pytest.raises(InputError) as error:
        fetch(file_download(url, folder))
    assert "the connection broke" in sentence(error)
    assert len(behaviour.asked) == 1 + downloads.FRUITLESS
    assert (folder / "weights.bin.part").stat().st_size == 2 * BLOCK


def test_no_server_at_all_is_told(folder: Path) -> None:
    with serving(behaving()) as url:
        pass
    with pytest.raises(InputError) as error:
        fetch(file_download(url, folder))
    assert "no connection to the server" in sentence(error)


def test_plain_http_where_tls_is_meant_is_told(folder: Path) -> None:
    with serving(behaving()) as url, pytest.raises(InputError) as error:
        fetch(file_download(url.replace("http://", "https://"), folder))
    assert "certificate" in sentence(error)


def test_a_proxy_that_is_away_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(behaving()) as url:
        dead = re.sub("/weights.bin", "", url)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, dead)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError) as error:
        fetch(file_download("https://models.example.invalid/weights.bin", folder))
    assert "proxy" in sentence(error)


def test_a_full_disk_is_told_before_the_first_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    with serving(behaving()) as url, pytest.raises(InputError) as error:
        fetch(file_download(url, folder))
    assert "0.0 MB left and 1.0 MB are to come" in sentence(error)
    assert files(folder) == []


def test_a_folder_that_cannot_be_made_is_told(folder: Path) -> None:
    folder.write_text("a file", encoding="utf-8")
    with serving(behaving()) as url, pytest.raises(InputError) as error:
        fetch(file_download(url, folder / "deeper"))
    assert str(folder) in sentence(error)


def test_nothing_is_written_elsewhere(folder: Path) -> None:
    with serving(behaving(breaks_after=[5000])) as url:
        fetch(file_download(url, folder))
    assert files(folder.parent) == ["models", "outside"]
    assert (folder.parent / "outside").read_text(encoding="utf-8") == "mine"
