"""A sample of `Testing.fuzz.headers`; ``python -m Testing.fuzz.headers`` runs all 500."""

from __future__ import annotations

from collections import Counter

import pytest

from Testing.fuzz.headers import Outcome, run

SEED = 0
SAMPLE = [*range(0, 120), 143, 274, 286, 342, 371, 430, 466]
"""By turns NIfTI, NRRD, MetaImage and DICOM, and those at which ITK crashed or read past the end of its memory."""


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return list(run(SAMPLE, SEED))


def test_changed_headers_are_read_as_the_oracles_read_them_or_refused_in_a_sentence(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.failed] == []
    assert [outcome.number for outcome in outcomes] == SAMPLE


def test_the_sample_shows_something_of_every_format(outcomes: list[Outcome]) -> None:
    """Neither is all refused, which would be easy, nor is nothing."""
    counts = Counter((outcome.kind, "read" if outcome.outcome == "noted" else outcome.outcome) for outcome in outcomes)
    for kind in ("NIfTI", "NRRD", "MetaImage", "DICOM"):
        assert counts[kind, "read"] >= 5
        assert counts[kind, "refused"] >= 5
