"""The versions that a record and a greeting tell."""

from __future__ import annotations

import numpy as np

from XAICLIPLib import __version__
from XAICLIPLib.reporting import record
from XAICLIPLib.system.packages import installed, versions


def test_versions_are_those_of_what_runs() -> None:
    found = versions(record.PACKAGES)
    assert found["xaiclip"] == __version__
    assert found["numpy"] == np.__version__
    assert all(found.values())
    assert versions(("numpy", "no-such-package"))["no-such-package"] == ""
    assert installed("no-such-package") == ""
