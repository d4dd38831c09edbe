"""Who says what kind of scan a volume is: the user, then the file, then the intensities."""

from __future__ import annotations

import pytest

from XAICLIPLib.imaging.modality import modality_of
from XAICLIPLib.imaging.phantom import torso_phantom
from XAICLIPLib.imaging.scan import Scan

IMAGE = torso_phantom(0).image


@pytest.mark.parametrize(
    ("header", "given", "code", "source", "for_methods"),
    [
        (None, None, "CT", "intensities", "CT"),
        ("PT", None, "PT", "header", None),
        ("MR", None, "MR", "header", "MR"),
        ("CT", "MR", "MR", "user", "MR"),
        ("MR", "MR", "MR", "user", "MR"),
        (None, "MR", "MR", "user", "MR"),
        ("Doe^Jane", None, "CT", "intensities", "CT"),
    ],
)
def test_the_user_goes_before_the_file_and_that_before_the_intensities(
    header: str | None, given: str | None, code: str, source: str, for_methods: str | None
) -> None:
    known = modality_of(Scan(IMAGE, modality=header), given)  # type: ignore[arg-type]
    assert (known.code, known.source, known.for_methods) == (code, source, for_methods)
    told = known.warnings()
    assert told == (
        ["The file says that the scan is CT, and it was taken for MR, as you said."]
        if (header, given) == ("CT", "MR")
        else []
    )
