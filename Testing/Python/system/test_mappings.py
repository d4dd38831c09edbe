"""Mappings of strangers: plain values are read, what grows when it is read is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from XAICLIPLib.segmentation.untrusted.configuration import Configuration
from XAICLIPLib.system.mappings import read_mapping


@pytest.mark.parametrize(("name", "text"), [("a.json", '{"a": [1, "*b"]}'), ("a.yaml", "a: [1, '*b']")])
def test_plain_values_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_mapping(tmp_path / name) == {"a": [1, "*b"]}


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a 1", "a: *b", "a: &a {b: 1}\nc: {<<: *a}", "&a b: 1"])
def test_anchors_and_aliases_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match="anchors"):
        read_mapping(tmp_path / "a.yaml")


def test_a_long_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\n" * 100)
    with pytest.raises(ValueError, match="too long"):
        read_mapping(tmp_path / "a.yaml", 100)


def test_the_mappings_of_a_list_that_holds_itself_come_to_an_end() -> None:
    endless: list[object] = [{"softmax": True}]
    endless.append(endless)
    assert list(Configuration({"post": endless}, "x").mappings("post")) == [{"softmax": True}]
