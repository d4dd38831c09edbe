"""Scans and their label maps, paired by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.anatomy import Structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.system.files import check_exists

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")

_OF_LABELS = frozenset("label labels lbl seg segs segmentation mask masks gt".split())
_OF_IMAGES = frozenset("image images img imgs ct mr mri scan volume 0000".split())
"""Words of a file's name that tell its kind, not the case; 0000 is nnU-Net's first channel."""


@dataclass(frozen=True)
class Pair:
    """A scan and its label map: two files on one grid."""

    image: Path
    labels: Path

    def read(self) -> tuple[sitk.Image, sitk.Image]:
        """The scan, and its labels (uint32) in exactly its geometry.

        Raises
        ------
        InputError
            One of them cannot be read, they lie on different grids, or the labels are no whole numbers.
        """
        image, labels = imaging.read_volume(self.image), imaging.read_volume(self.labels)
        if not imaging.same_geometry(image, labels, tolerance_mm=0.1):
            raise InputError(
                f"The labels {self.labels} lie on another grid than their scan {self.image}: resample them to it, or "
                "check that the two belong together."
            )
        values = sitk.GetArrayViewFromImage(labels)
        if values.min() < 0 or (values.dtype.kind == "f" and bool((values != np.floor(values)).any())):
            raise InputError(f"{self.labels} is no label map: give one of whole numbers from 0.")
        labels = sitk.Cast(labels, sitk.sitkUInt32)
        labels.CopyInformation(image)
        return image, labels


def find_pairs(images: Sequence[Path], labels: Sequence[Path]) -> list[Pair]:
    """Pair files, or all of some folders, by name: "case_03_image" and "case_03_seg", or equal names in two folders.

    A folder may hold both: then scans and label maps are told apart by their names. Sorted by name.

    Raises
    ------
    InputError
        A file is missing, has no partner, or more than one.
    """
    paths = {
        "scan": _by_key(_volume_files(images, of_labels=False)),
        "label map": _by_key(_volume_files(labels, of_labels=True)),
    }
    for kind, other in (("scan", "label map"), ("label map", "scan")):
        for key, path in paths[kind].items():
            if key not in paths[other]:
                raise InputError(f"{path} has no {other} of the same name: give both, or leave it out.")
    return [Pair(path, paths["label map"][key]) for key, path in sorted(paths["scan"].items())]


def _volume_files(paths: Sequence[Path], of_labels: bool) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            check_exists(path)
            files.append(path)
            continue
        inside = [p for p in sorted(path.iterdir()) if p.name.lower().endswith(ENDINGS) and not p.name.startswith(".")]
        is_labels = [bool(_OF_LABELS & set(_words(p))) for p in inside]
        if any(is_labels) and not all(is_labels):  # scans and labels beside each other
            inside = [p for p, is_label in zip(inside, is_labels, strict=True) if is_label == of_labels]
        if not inside:
            raise InputError(f"The folder {path} holds no {'label maps' if of_labels else 'scans'} (NIfTI, NRRD, MHA).")
        files += inside
    return files


def _by_key(paths: Sequence[Path]) -> dict[tuple[str, ...], Path]:
    path_of: dict[tuple[str, ...], Path] = {}
    for path in paths:
        key = tuple(w for w in _words(path) if w not in _OF_LABELS | _OF_IMAGES) or (path.parent.name,)
        if key in path_of:
            raise InputError(f"{path} and {path_of[key]} have the same name: give one of them.")
        path_of[key] = path
    return path_of


def _words(path: Path) -> list[str]:
    name = path.name.lower()
    ending = max((e for e in ENDINGS if name.endswith(e)), key=len, default="")
    return [word for word in re.split(r"[^a-z0-9]+", name.removesuffix(ending)) if word]


def named_labels(names: Mapping[int, str]) -> dict[int, Structure]:
    """The structure of each value of a label map, by its name.

    Raises
    ------
    InputError
        A name is no known structure, or two of them share a part.
    """
    structures: dict[int, Structure] = {}
    for value, name in names.items():
        structure = anatomy.resolve(name)
        if structure is None:
            near = ", ".join(f'"{n}"' for n in anatomy.suggestions(name))
            hint = f" (the nearest are {near})" if near else ""
            raise InputError(f'The label {value}, "{name}", is no known structure{hint}: rename it or leave it out.')
        for other in structures.values():
            if other != structure and anatomy.parts(other) & anatomy.parts(structure):
                raise InputError(f'The labels "{other.name}" and "{structure.name}" overlap: give one of them.')
        structures[value] = structure
    if not structures:
        raise InputError("No label has a name: say which value is which structure.")
    return structures


def parse_names(text: str) -> dict[int, str]:
    """Names from "1=spleen,2=right kidney".

    Raises
    ------
    InputError
        The text has another form.
    """
    names: dict[int, str] = {}
    for part in text.split(","):
        value, _, name = (p.strip() for p in part.partition("="))
        if not value.isdecimal() or int(value) == 0 or not name or int(value) in names:
            raise InputError(f'The structures "{text}" are not of the form "1=spleen,2=right kidney".')
        names[int(value)] = name
    return names


def read_names(path: Path) -> dict[int, str]:
    """Names from a JSON file: {"1": "spleen"} or {"spleen": 1}, also under "labels", as nnU-Net writes them.

    Raises
    ------
    InputError
        It cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("labels", content)
        pairs = [(k, v) if str(k).isdecimal() else (v, k) for k, v in content.items()]
        named = {int(value): str(name) for value, name in pairs}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f'{path} does not name labels: give JSON such as {{"1": "spleen"}}.') from error
    return {value: name for value, name in named.items() if value > 0}
