"""Models arrive whole and checked, from a server, from files that are here, or by another library."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from misbehaving import Behaviour, serving

from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.models import acquisition, libraries
from XAICLIPLib.models.acquisition import download, install
from XAICLIPLib.models.catalogue import find
from XAICLIPLib.models.catalogue_file import read_entry
from XAICLIPLib.models.entry import Entry

FILES = {"model.json": b"{}", "weights/model.bin": bytes(range(256)) * 2000}
SUMS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
PLAIN = {"name": "net", "kind": "segmenter", "format": "meshnet", "title": "x", "modality": "MR", "structures": []}


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's models."""
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "mine"))
    return tmp_path / "mine"


def entry(**given: Any) -> Entry:
    return read_entry(PLAIN | {"licence": "MIT"} | given, "The entry")


def of_files(url: str) -> Entry:
    folder = url.rsplit("/", 1)[0]
    sources = {
        name: {"url": f"{folder}/{name}", "sha256": SUMS[name], "size": len(content)} for name, content in FILES.items()
    }
    return entry(source={"files": sources})


def packed(prefix: str = "", files: dict[str, bytes] = FILES) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return stream.getvalue()


def of_archive(url: str, content: bytes, **more: Any) -> Entry:
    return entry(source={"archive": {"url": url, "sha256": hashlib.sha256(content).hexdigest()}}, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tidy(mine: Path, *left: str) -> bool:
    """Whether nothing but models, locks and what is named is left in the folder of the user's models."""
    found = {path.relative_to(mine).as_posix() for path in (mine / "downloads").rglob("*")}
    return found == set(left)


# From a server


def test_single_files_are_downloaded_and_checked(mine: Path) -> None:
    with serving(Behaviour(paths={f"/{name}": content for name, content in FILES.items()})) as url:
        model = of_files(url)
        assert not model.installed and model.folder is None
        seen: list[tuple[str, int, int | None]] = []
        folder = download(model, lambda *told: seen.append(told))
    assert folder == mine / "models" / "net" == model.folder
    assert contents(folder) == FILES and model.installed
    model.check()
    for name, content in FILES.items():
        assert (name, len(content), len(content)) in seen
    assert download(model) == folder, "without the server, which is away"


def test_a_file_that_is_missing_on_the_server_names_itself_and_its_place(mine: Path) -> None:
    with serving(Behaviour(paths={"/model.json": FILES["model.json"]})) as url, pytest.raises(InputError) as error:
        download(of_files(url))
    place = mine / "models" / "net" / "weights" / "model.bin"
    text = str(error.value)
    assert "weights/model.bin" in text and "404" in text
    assert text.endswith(f"then run `xaiclip models download net --from FILE` or put it at {place}.")


def test_what_came_before_a_failure_is_kept_and_the_rest_comes_later(mine: Path) -> None:
    with serving(Behaviour(paths={"/model.json": FILES["model.json"]})) as url:
        model = of_files(url)
        with pytest.raises(InputError):
            download(model)
        assert not model.installed
        place = mine / "models" / "net" / "weights" / "model.bin"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(FILES["weights/model.bin"])  # put there by hand, as the message says
        assert model.installed
        assert download(model) == mine / "models" / "net"


def test_more_than_the_declared_size_is_refused(mine: Path) -> None:
    name = "weights/model.bin"
    with serving(Behaviour(paths={f"/{name}": FILES[name] + b"more"})) as url:
        remote = {"url": url.rsplit("/", 1)[0] + f"/{name}", "sha256": SUMS[name], "size": len(FILES[name])}
        with pytest.raises(InputError, match=r"more than the 0\.5 MB that the catalogue declares"):
            download(entry(source={"files": {name: remote}}))
        del remote["size"]
        with pytest.raises(InputError, match=r"more than the 0\.1 MB"):
            download(entry(source={"files": {name: remote}}, size_mb=0.1))
    assert contents(mine) == {}


@pytest.mark.parametrize("prefix", ["", "net-v1/", "a/b/"])
def test_an_archive_is_unpacked_past_its_outer_folders(mine: Path, prefix: str) -> None:
    content = packed(prefix)
    with serving(Behaviour(content)) as url:
        model = of_archive(url + ".zip", content)
        assert download(model) == mine / "models" / "net"
    assert contents(mine / "models" / "net") == FILES
    assert tidy(mine)
    assert json.loads((mine / "locks" / "net.json").read_text(encoding="utf-8"))["files"] == SUMS
    (mine / "models" / "net" / "model.json").write_bytes(b"[]")
    with pytest.raises(InputError, match="net was changed"):
        model.check()


def test_an_archive_with_other_files_than_listed_is_refused(mine: Path) -> None:
    content = packed(files=FILES | {"model.json": b"other"})
    with serving(Behaviour(content)) as url, pytest.raises(InputError, match=r"model\.json is not that file"):
        download(of_archive(url, content, files=SUMS))
    assert not (mine / "models").exists()


def test_an_archive_that_would_write_elsewhere_is_refused(mine: Path) -> None:
    content = packed("../../")
    with serving(Behaviour(content)) as url, pytest.raises(InputError, match="leads out of the folder"):
        download(of_archive(url, content))
    assert sorted(path.name for path in mine.iterdir()) == ["downloads"]
    assert [path.name for path in mine.parent.iterdir()] == ["mine"]


def test_a_cancelled_archive_goes_on_later(mine: Path) -> None:
    content = packed()
    behaviour = Behaviour(content)
    with serving(behaviour) as url:
        model, came = of_archive(url, content), [0]
        with pytest.raises(Cancelled):
            download(model, lambda name, done, total: came.append(done), lambda: came[-1] > 100_000)
        assert not model.installed
        download(model)
    assert model.installed and behaviour.asked[-1] == f"bytes={came[-1]}-"


# From files that are here


def given_folder(tmp_path: Path, files: dict[str, bytes] = FILES) -> Path:
    folder = tmp_path / "given"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("as_archive", [True, False])
def test_files_that_are_here_are_copied_in(mine: Path, tmp_path: Path, as_archive: bool) -> None:
    folder = given_folder(tmp_path, FILES | {"README.md": b"x", "extra.json": b"{}"})
    given = Path(shutil.make_archive(str(tmp_path / "given"), "gztar", folder)) if as_archive else folder
    model = of_files("https://example.invalid/x")
    install(model, given)
    assert contents(mine / "models" / "net") == FILES, "and nothing that the catalogue does not list"
    assert model.installed and given.exists() and tidy(mine)
    model.check()


def test_files_that_are_here_can_be_given_one_by_one(mine: Path, tmp_path: Path) -> None:
    folder, model = given_folder(tmp_path), of_files("https://example.invalid/x")
    renamed = folder / "download(1)"
    shutil.copyfile(folder / "model.json", renamed)
    with pytest.raises(InputError, match=r"is now part of the model net, which still lacks weights/model\.bin"):
        install(model, renamed)
    install(model, folder / "weights" / "model.bin")
    assert contents(mine / "models" / "net") == FILES


def test_other_files_are_refused_and_what_was_there_stays(mine: Path, tmp_path: Path) -> None:
    model = of_files("https://example.invalid/x")
    install(model, given_folder(tmp_path))
    other = given_folder(tmp_path, {"model.json": b"other"})
    before = contents(mine)
    for given, told in (
        (other, "model.json is not that file"),
        (other / "model.json", "is none of the files of the model net"),
        (tmp_path / "nosuch", "There is no"),
        (mine / "models" / "net" / "weights", "is not the model net, model.json is missing"),
    ):
        with pytest.raises(InputError, match=told):
            install(model, given)
        assert contents(mine) == before


def test_another_archive_than_was_meant_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(packed() + b"x")
    with pytest.raises(InputError, match=r"x\.zip is not the archive of the model net.*get it from https://example"):
        install(of_archive("https://example.org/x.zip", packed()), tmp_path / "x.zip")


def test_a_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    folder = given_folder(tmp_path)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="link or a special file"):
        install(of_files("https://example.invalid/x"), folder)


def test_a_model_without_checksums_is_remembered_as_it_first_came(mine: Path, tmp_path: Path) -> None:
    model = entry(source="monai:some_bundle@1.0", format="bundle")
    install(model, given_folder(tmp_path))
    assert model.checksums == SUMS and model.installed and not model.files
    model.check()
    (mine / "models" / "net" / "weights" / "model.bin").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"net was changed, .*model\.bin .*models remove net"):
        model.check()


# By another library


def test_without_a_network_another_library_fails_in_a_sentence(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = "hf-hub:nobody/nothing"
    model = entry(source=source, format="bundle")
    with pytest.raises(InputError) as error:
        download(model)
    text = str(error.value)
    assert text.startswith(f"The model net cannot be downloaded from {source} (")
    assert "get it on another computer" in text
    assert "`xaiclip models download net --from FILE`" in text and "\n" not in text
    assert tidy(mine) and not (mine / "models").exists()


def test_a_localizer_of_open_clip_fails_in_a_sentence_too(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(way: str, what: str, *_: Any) -> Path:
        assert (way, what) == ("open_clip", "clip-vit-b-16"), "by its name, so that its checksums are remembered"
        raise OSError("The localizer does not load: its files cannot be downloaded.\nMore of it.")

    monkeypatch.setattr(libraries, "fetch", fetched)
    with pytest.raises(
        InputError, match=r"from open_clip:.* \(The localizer .*downloaded\.\): get a folder .*localizer\.$"
    ):
        download(find("clip-vit-b-16"))
    assert tidy(mine)


def test_what_a_library_downloads_is_installed_with_its_checksums(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def fetched(way: str, what: str, folder: Path, on_size: Any, cancelled: Any) -> Path:
        assert (way, what) == ("monai", "some_bundle@1.0.2")
        on_size(500_000)
        on_size(2_000_000)
        return given_folder(folder)

    monkeypatch.setattr(libraries, "fetch", fetched)
    model = entry(source="monai:some_bundle@1.0.2", format="bundle", size_mb=1)
    assert download(model, lambda *progress: told.append(progress)) == mine / "models" / "net"
    assert contents(mine / "models" / "net") == FILES == {name: FILES[name] for name in model.checksums}
    assert told == [("net", 500_000, 1_000_000), ("net", 1_000_000, 1_000_000)]
    assert tidy(mine)


def test_a_package_is_left_to_pip() -> None:
    model = entry(source="package:no-such-package-here", format="deepbet")
    for attempt in (lambda: download(model), lambda: install(model, Path())):
        with pytest.raises(InputError, match="run `pip install no-such-package-here` where"):
            attempt()


def test_what_ships_needs_no_download() -> None:
    model = find("abdomen-ct")
    assert download(model) == model.folder
    with pytest.raises(InputError, match="here already"):
        install(model, Path())


def test_what_a_killed_process_left_is_swept_away(mine: Path, tmp_path: Path) -> None:
    mine.mkdir()
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from XAICLIPLib.system import scratch; print(scratch.make(sys.argv[1]), end='')",
            mine,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    left = mine / "downloads" / Path(killed.stdout).name
    left.parent.mkdir()
    Path(killed.stdout).rename(left)
    (left / "half.bin").write_bytes(b"0")
    install(of_files("http://127.0.0.1:9/x"), given_folder(tmp_path))
    assert not left.exists() and tidy(mine)


def test_a_folder_that_cannot_be_written_is_told(mine: Path, tmp_path: Path) -> None:
    mine.write_text("a file", encoding="utf-8")
    with pytest.raises(InputError, match="name another folder in the variable XAICLIP_MODELS"):
        install(of_files("https://example.invalid/x"), given_folder(tmp_path))


@pytest.mark.parametrize("name", ["brainchop-tissue", "brainchop-subcortical"])
def test_brainchop_is_installed_from_its_files(name: str, mine: Path, shared_data: Path) -> None:
    folder = shared_data / "brain_mr" / ("model20chan3cls" if name == "brainchop-tissue" else "model30chan18cls")
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    model = find(name)
    assert acquisition.install(model, folder) == mine / "models" / name
    model.check()
