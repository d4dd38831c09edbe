"""The map of a run that is being computed: brought up to date a few slices at a time, so that Slicer stays usable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from XAICLIPLib.errors import InputError
from XAICLIPModule.live import nrrd
from XAICLIPModule.live.turns import Turns, Work
from XAICLIPModule.scene import results


class DevelopingMap:
    """A saliency volume that follows the worker's estimates.

    Parameters
    ----------
    volumeNode
        The input.
    name
        Of the saliency volume, which is made with the first estimate.
    updated
        Called with the saliency volume whenever an estimate is in it as a whole.
    """

    def __init__(self, volumeNode: Any, name: str, updated: Callable[[Any], None]) -> None:
        self.node: Any = None
        self._volumeNode, self._name, self._updated = volumeNode, name, updated
        self._waiting: Path | None = None
        self._path: Path | None = None
        self._turns: Turns | None = None

    def feed(self, path: Path) -> None:
        """Show an estimate; its file is deleted once read. One that is still waiting is passed over for a newer one."""
        if self._waiting is not None:
            self._waiting.unlink(missing_ok=True)
        self._waiting = path
        if self._path is None:
            self._begin()

    def stop(self) -> None:
        """Show no more, and delete what was not read."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.stop()  # and with it the mapping of the file, which Windows would not delete
        for path in (self._path, self._waiting):
            if path is not None:
                path.unlink(missing_ok=True)
        self._path = self._waiting = None

    def _begin(self) -> None:
        self._path, self._waiting = self._waiting, None
        if self._path is not None:
            # What is wrong with an estimate, the next one or the result will tell.
            turns = Turns(self._copy(self._path), self._finish, lambda _error: self.stop())
            self._turns = turns if self._path is not None else None

    def _copy(self, path: Path) -> Work:
        voxels = nrrd.mapped(path)
        if voxels.shape != results.shapeOf(self._volumeNode):
            raise InputError("An estimate does not lie on the grid of the volume.")
        if self.node is None:
            self.node = results.saliencyVolume(self._volumeNode, self._name)
        yield from results.fill(self.node, voxels)

    def _finish(self, _result: None) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._path = self._turns = None
        self._updated(self.node)
        if self._path is None:  # whoever was told may have fed the next one
            self._begin()
