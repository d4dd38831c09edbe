"""One labelled scan of a dataset, read only when it is needed, and the checks that every dataset needs.

Only geometry is taken from DICOM headers: identifiers are those of the published folders and files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from XAICLIPLib import imaging
from XAICLIPLib.anatomy import Modality, resolve
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.geometry import without_metadata

GRID_TOLERANCE = 0.1
"""How far apart, in edges of the smallest voxel, the corners of image and labels may lie: files round their geometry;
beyond it a label would sit on other tissue than the one it was drawn on."""


@dataclass(frozen=True)
class Case:
    """One image with its labels.

    Parameters
    ----------
    identifier : str
        Unique in the dataset and stable between runs, without patient data.
    modality : {"CT", "MR"} or None
        None where the dataset does not say.
    sequence : str or None
        MR sequence or names of the channels, such as "T1-DUAL in phase".
    structures : mapping of int to str
        Names of the vocabulary (``Resources/anatomy.json``) by label value. Not each need be present in this image.
    unnamed : mapping of int to str
        Labels that the dataset has under a name that the vocabulary lacks ("cancer").
    read_image, read_labels : callable
        The functions that `image` and `labels` call.
    """

    identifier: str
    modality: Modality | None
    sequence: str | None
    structures: Mapping[int, str]
    read_image: Callable[[], sitk.Image] = field(repr=False, compare=False)
    read_labels: Callable[[], sitk.Image] = field(repr=False, compare=False)
    unnamed: Mapping[int, str] = field(default_factory=dict)

    def image(self) -> sitk.Image:
        """Read the image: 3D, LPS in mm, as many components per voxel as there are channels.

        Raises
        ------
        InputError
            Missing, damaged or unusable files, in one sentence that names them.
        """
        return self.read_image()

    def labels(self) -> sitk.Image:
        """Read the label map: unsigned integers, in exactly the grid of `image`.

        Raises
        ------
        InputError
            As `image`; a grid other than the image's; a value that the dataset does not define.
        """
        return self.read_labels()


@dataclass(frozen=True)
class Dataset(Sequence[Case]):
    """The usable cases of a dataset, as a sequence, and the problems of the others.

    Parameters
    ----------
    cases : tuple of Case
        In the order of the dataset, numbers by value.
    problems : tuple of str
        One sentence for each case that was left out, and for each label without a name in the vocabulary.
    """

    cases: tuple[Case, ...]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | Sequence[Case]:
        return self.cases[index]


def gather(cases_and_errors: Iterable[Case | InputError], root: Path) -> Dataset:
    """Collect the usable cases of a dataset, and the problems of the others.

    Raises
    ------
    InputError
        There is no case at all, or none that can be used.
    """
    cases: dict[str, Case] = {}
    problems: list[str] = []
    for item in cases_and_errors:
        if isinstance(item, InputError):
            problems.append(str(item))
        elif item.identifier in cases:
            problems.append(f"{root} has the case {item.identifier} twice: the second one is left out.")
        else:
            cases[item.identifier] = item
    if not cases:
        if len(problems) == 1:
            raise InputError(problems[0])
        listing = f": {' '.join(problems[:5])}" if problems else ", it is empty: check the folder."
        raise InputError(f"{root} holds no usable case{listing}")
    return Dataset(tuple(cases.values()), tuple(problems))


def attempt(make: Callable[..., Case], *arguments: Any) -> Case | InputError:
    """Make a case, or return its error, so that one broken case does not stop the reading of the others."""
    try:
        return make(*arguments)
    except InputError as error:
        return error


def natural(name: str | Path) -> list[tuple[int, int, str]]:
    """Key to sort names, of files or others, with numbers by value: 2 before 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", Path(name).name)]


def name_labels(labels: Mapping[int, str]) -> tuple[dict[int, str], dict[int, str]]:
    """Divide a dataset's labels into those that the vocabulary knows, by its names, and the others; 0 is left out."""
    known = {value: resolve(name) for value, name in sorted(labels.items()) if value != 0}
    structures = {value: structure.name for value, structure in known.items() if structure}
    return structures, {value: labels[value] for value, structure in known.items() if not structure}


# --- cases of files -----------------------------------------------------------------------------


def case_of_files(
    identifier: str,
    images: Sequence[Path],
    labels: Path,
    names: Mapping[int, str],
    modality: Modality | None = None,
    sequence: str | None = None,
) -> Case:
    """Make a case from volume files (or DICOM folders, for the image), one image for each channel.

    Only headers of files are read here, and no DICOM folders.

    Raises
    ------
    InputError
        A file is missing or unreadable, or lies on another grid than the first image.
    """
    for path in images:
        if not path.exists():
            raise InputError(f"The labels {labels} have no image: {path} is missing.")
    if not labels.is_file():
        raise InputError(f"The image {images[0]} has no labels: {labels} is missing.")
    structures, unnamed = name_labels(names)
    if not structures:
        listed = ", ".join(f'"{name}"' for value, name in sorted(names.items()) if value) or "none"
        raise InputError(
            f"No label of {labels} has a name of the vocabulary (given: {listed}): "
            f"name them as Resources/anatomy.json does."
        )
    if images[0].is_file():
        for path in (*images[1:], labels):
            if path.is_file():
                _check_grids(_header(images[0]), images[0], _header(path), path)
    allowed = frozenset({0, *structures, *unnamed})
    return Case(
        identifier,
        modality,
        sequence,
        structures,
        partial(_read_channels, tuple(images)),
        partial(_read_label_file, labels, images[0], allowed),
        unnamed,
    )


def label_image(array: NDArray[Any], grid: sitk.Image | sitk.ImageFileReader) -> sitk.Image:
    """A label map of whole numbers (Z, Y, X) in a grid, in the smallest of uint8, uint16 and uint32."""
    image = sitk.GetImageFromArray(array.astype(np.min_scalar_type(int(array.max()))))
    size, spacing, origin, axes = _geometry(grid)
    if image.GetSize() != size:
        raise ValueError(f"labels of {image.GetSize()} voxels in a grid of {size}")
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(axes.ravel().tolist())
    return image


def _read_channels(paths: tuple[Path, ...]) -> sitk.Image:
    if len(paths) == 1:
        if paths[0].is_file() and _frames(header := _header(paths[0])) > 1:
            return _read_frames(paths[0], header)
        return imaging.read_volume(paths[0])
    channels = [imaging.read_volume(path) for path in paths]
    for channel, path in zip(channels[1:], paths[1:], strict=True):
        _check_grids(channels[0], paths[0], channel, path)
        channel.CopyInformation(channels[0])
    return sitk.Compose([sitk.Cast(channel, sitk.sitkFloat32) for channel in channels])


def _frames(header: sitk.ImageFileReader) -> int:
    return int(np.prod(header.GetSize()[3:], dtype=int))


def _read_frames(path: Path, header: sitk.ImageFileReader) -> sitk.Image:
    """Read a 4D file whose last axis is the channel, as the Medical Segmentation Decathlon has them."""
    if len(header.GetSize()) > 4:
        raise InputError(f"The image {path} has {len(header.GetSize())} axes: give one volume, or one with channels.")
    try:
        whole = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} is damaged or cut off: export or copy it again.") from error
    size = [*whole.GetSize()[:3], 0]
    channels = [sitk.Extract(whole, size, [0, 0, 0, index]) for index in range(whole.GetSize()[3])]
    for index, channel in enumerate(channels):
        imaging.check_volume(channel, f"channel {index} of the image {path}")
    return without_metadata(sitk.Compose([sitk.Cast(channel, sitk.sitkFloat32) for channel in channels]))


def _read_label_file(path: Path, image: Path, allowed: frozenset[int]) -> sitk.Image:
    labels = imaging.read_volume(path)
    # The header is enough for files; a DICOM folder has to be read.
    grid = _header(image) if image.is_file() else imaging.read_volume(image)
    _check_grids(grid, image, labels, path)
    array = sitk.GetArrayViewFromImage(labels)
    unknown = sorted(set(np.unique(array).tolist()) - allowed)
    if unknown:
        listing = ", ".join(f"{value:g}" for value in unknown[:5])
        raise InputError(
            f"The labels {path} hold the value {listing}, which the dataset does not define "
            f"(it has {', '.join(str(v) for v in sorted(allowed))}): correct the file or add a name for it."
        )
    return label_image(array, grid)


# --- grids --------------------------------------------------------------------------------------


def _header(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(
            f"{path} cannot be read, it is damaged, cut off or not what its name says: export or copy it again."
        ) from error
    return reader


def _geometry(
    grid: sitk.Image | sitk.ImageFileReader,
) -> tuple[tuple[int, ...], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Size, spacing, origin and axes (as columns) of the first three dimensions."""
    dimension = len(grid.GetSize())
    axes = np.reshape(grid.GetDirection(), (dimension, dimension))[:3, :3]
    return grid.GetSize()[:3], np.array(grid.GetSpacing()[:3]), np.array(grid.GetOrigin()[:3]), axes


def _corners(grid: sitk.Image | sitk.ImageFileReader) -> NDArray[Any]:
    """Centres of the eight corner voxels in mm."""
    size, spacing, origin, axes = _geometry(grid)
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij"), -1).reshape(-1, len(size))
    return np.asarray(origin + (ends * spacing) @ axes.T)


def _check_grids(
    grid: sitk.Image | sitk.ImageFileReader, path: Path, other: sitk.Image | sitk.ImageFileReader, other_path: Path
) -> None:
    size, other_size = grid.GetSize()[:3], other.GetSize()[:3]
    if size != other_size:
        mine, its = ("×".join(map(str, s)) for s in (size, other_size))
        raise InputError(f"{other_path} has {its} voxels but {path} has {mine}: give files that belong together.")
    apart = float(np.linalg.norm(_corners(grid) - _corners(other), axis=1).max())
    if not apart <= GRID_TOLERANCE * min(grid.GetSpacing()[:3]):
        raise InputError(
            f"{other_path} lies on another grid than {path}, up to {apart:.3g} mm apart: "
            f"resample one to the grid of the other first."
        )
