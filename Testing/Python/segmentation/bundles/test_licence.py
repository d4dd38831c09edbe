"""A bundle's licence is read from its licence file, by well-known opening words; what is unknown is passed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from XAICLIPLib.segmentation.bundles.licence import licence_of, named_licence

APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
MIT = "MIT License\n\nCopyright (c) 2026 Nobody\n\nPermission is hereby granted, free of charge, to any person\n"
BSD = "Copyright\n\nRedistribution and use in source and binary forms, with or without modification\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (APACHE, "Apache-2.0"),
        (MIT, "MIT"),
        (MIT.partition("\n\n")[2], "MIT"),
        (BSD + "3. Neither the name of the copyright holder", "BSD-3-Clause"),
        (BSD, "BSD-2-Clause"),
        ("GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007", "GPL-3.0"),
        ("Creative Commons Attribution 4.0 International Public License", "CC-BY-4.0"),
        ("Attribution-NonCommercial-ShareAlike 4.0 International", "CC-BY-NC-SA-4.0"),
        ("CC BY-NC 4.0", "CC-BY-NC-4.0"),
        ("# Our own licence\n\nAsk us.", "Our own licence"),
        (f"Code License\n\nFor all files but the model weights.\n\n{APACHE}\n\nModel Weights License\n\n"
         "This license applies to model weights in the directory.\n\nACME License\n\n1. Definitions",
         "Apache-2.0 (code), ACME License (weights)"),
    ],
)  # fmt: skip
def test_a_licence_is_known_by_its_opening_words(text: str, name: str) -> None:
    assert named_licence(text) == name


def test_the_metadata_come_first_unless_they_point_at_a_file(tmp_path: Path) -> None:
    assert licence_of(tmp_path, {}) == "unknown"
    assert licence_of(tmp_path, {"license": "See license.txt"}) == "See license.txt"
    (tmp_path / "LICENSE").write_text(MIT)
    assert licence_of(tmp_path, {}) == licence_of(tmp_path, {"license": "See license.txt"}) == "MIT"
    assert licence_of(tmp_path, {"license": "CC-BY-4.0"}) == "CC-BY-4.0"


def test_a_file_of_any_bytes_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_bytes(b"\xff\xfe\x00" * 50)
    assert len(licence_of(tmp_path, {})) <= 81
    (tmp_path / "LICENSE").write_bytes(b"x" * 300_000)
    assert licence_of(tmp_path, {}) == "unknown"


def test_of_a_file_outside_of_the_bundle_no_line_is_passed_on(tmp_path: Path) -> None:
    """A stranger's link could lead to any file of the user's; downloads are kept as links to files elsewhere, too."""
    secret, known = tmp_path / "secret.txt", tmp_path / "blob"
    secret.write_text("Doe^Jane, born 1960\n")
    known.write_text(MIT)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "LICENSE").symlink_to(secret)
    assert licence_of(tmp_path / "bundle", {}) == "unknown"
    (tmp_path / "bundle" / "LICENSE").unlink()
    (tmp_path / "bundle" / "LICENSE").symlink_to(known)
    assert licence_of(tmp_path / "bundle", {}) == "MIT"


def test_a_whole_licence_in_the_metadata_is_named(tmp_path: Path) -> None:
    assert licence_of(tmp_path, {"license": MIT * 20}) == "MIT"
    assert len(licence_of(tmp_path, {"license": "x" * 300_000})) == 81
