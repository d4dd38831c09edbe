"""The map of a run that is being computed: brought up to date a few slices at a time, so that Slicer stays usable."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
from numpy.typing import NDArray

from XAICLIPLib.errors import InputError
from XAICLIPModule.display import saliency_display
from XAICLIPModule.scene import results

SLAB_BYTES = 8 * 2**20
TURN_S = 0.03
"""How long a turn of copying may last before Slicer gets its turn."""


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
        self._voxels: NDArray[Any] | None = None
        self._slice = 0
        self._range = (0.0, 0.0)

    def feed(self, path: Path) -> None:
        """Show an estimate; its file is deleted once read. One that is still waiting is passed over for a newer one."""
        if self._waiting is not None:
            self._waiting.unlink(missing_ok=True)
        self._waiting = path
        if self._path is None:
            self._begin()

    def stop(self) -> None:
        """Show no more, and delete what was not read."""
        self._voxels = None  # on Windows a file that is mapped cannot be deleted
        for path in (self._path, self._waiting):
            if path is not None:
                path.unlink(missing_ok=True)
        self._path = self._waiting = None

    def _begin(self) -> None:
        self._path, self._waiting = self._waiting, None
        if self._path is None:
            return
        try:
            self._voxels = _mapped(self._path)
            shape = tuple(reversed(self._volumeNode.GetImageData().GetDimensions()))
            if self._voxels.shape != shape:
                raise InputError("An estimate does not lie on the grid of the volume.")
        except (InputError, OSError):
            self.stop()  # the next estimate, or the result, will tell what is wrong
            return
        if self.node is None:
            self.node = results.saliencyVolume(self._volumeNode, self._name, np.zeros(shape, np.float32))
        self._slice, self._range = 0, (0.0, 0.0)
        self._copy()

    def _copy(self) -> None:
        """Copy slices for a turn, and come back for the rest."""
        target = results.arrayOf(self.node)
        if self._voxels is None or target is None or target.shape != self._voxels.shape:
            self.stop()
            return
        end, count = time.perf_counter() + TURN_S, max(1, SLAB_BYTES // max(self._voxels[0].nbytes, 1))
        while self._slice < len(target) and time.perf_counter() < end:
            part = self._voxels[self._slice : self._slice + count]
            target[self._slice : self._slice + count] = part
            self._range = min(self._range[0], float(part.min())), max(self._range[1], float(part.max()))
            self._slice += count
        if self._slice < len(target):
            qt.QTimer.singleShot(0, self._copy)
            return
        self._finish()

    def _finish(self) -> None:
        self._voxels = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._path = None
        slicer.util.arrayFromVolumeModified(self.node)
        saliency_display.prepare(self.node, self._range)
        self._updated(self.node)
        if self._path is None:  # whoever was told may have fed the next one
            self._begin()


def _mapped(path: Path) -> NDArray[Any]:
    """The voxels (k, j, i) of a file of the worker, from the disk as they are needed where it is uncompressed NRRD.

    SimpleITK would read all of it at once.
    """
    header: dict[str, str] = {}
    with path.open("rb") as file:
        while (line := file.readline(10_000).strip()) and len(header) < 100:
            key, _separator, value = line.decode("ascii", "replace").partition(": ")
            header[key] = value
        offset = file.tell()
    plain = header.get("encoding") == "raw" and header.get("type") == "float" and "data file" not in header
    if not plain or header.get("endian") != "little" or len(header.get("sizes", "").split()) != 3:
        return results.arrayFromImage(results.readImage(path))
    shape = tuple(int(size) for size in reversed(header["sizes"].split()))
    try:
        return np.memmap(path, "<f4", "r", offset, shape)
    except ValueError as error:  # shorter than it says
        raise InputError("An estimate is cut off.") from error
