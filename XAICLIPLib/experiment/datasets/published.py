"""Labelled datasets as they are published, and users' own: one door for all, `read_dataset`.

What a user downloaded is read where it lies, nothing is converted or copied. Cases are listed from names and headers;
voxels are read when a case is asked for them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from XAICLIPLib.anatomy import Modality
from XAICLIPLib.errors import InputError
from XAICLIPLib.experiment.datasets.case import Case, Dataset, attempt, case_of_files, gather, name_labels, natural
from XAICLIPLib.experiment.datasets.chaos import find_chaos

__all__ = ["Case", "Dataset", "Kind", "read_dataset"]

Kind = Literal["flare22", "chaos", "btcv", "msd", "nnunet", "manifest", "folder"]

FLARE22: dict[int, str] = {
    1: "liver",
    2: "right kidney",
    3: "spleen",
    4: "pancreas",
    5: "aorta",
    6: "inferior vena cava",
    7: "right adrenal gland",
    8: "left adrenal gland",
    9: "gallbladder",
    10: "esophagus",
    11: "stomach",
    12: "duodenum",
    13: "left kidney",
}
"""Labels of FLARE 2022 (Ma et al., Lancet Digital Health 2024)."""

BTCV: dict[int, str] = {
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gallbladder",
    5: "esophagus",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "inferior vena cava",
    10: "portal and splenic veins",
    11: "pancreas",
    12: "right adrenal gland",
    13: "left adrenal gland",
}
"""Labels of "Beyond the Cranial Vault", abdomen (Landman et al., MICCAI 2015; synapse.org/Synapse:syn3193805)."""

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def read_dataset(kind: Kind, root: str | Path) -> Dataset:
    """List the labelled cases of a dataset.

    Parameters
    ----------
    kind : str
        ``flare22``
            ``imagesTr/FLARE22_Tr_0001_0000.nii.gz`` with ``labelsTr/FLARE22_Tr_0001.nii.gz``; ``images`` and ``labels``
            for folders will do.
        ``chaos``
            ``Train_Sets`` with CT and MR; see `XAICLIPLib.experiment.datasets.chaos`.
        ``btcv``
            ``RawData/Training/img/img0001.nii.gz`` with ``RawData/Training/label/label0001.nii.gz``.
        ``msd``, ``nnunet``
            ``dataset.json`` (either version) with ``imagesTr`` and ``labelsTr``; channels in files that end in _0000,
            _0001 … or as the fourth axis of one file.
        ``manifest``
            A CSV file, or the folder of its ``manifest.csv``: columns image, label, modality (CT, MR or empty), and
            optionally case, sequence, and names or structures ("1: liver; 2: spleen", or a JSON file; ``labels.json``
            beside the CSV where absent). Paths are relative to the CSV; several channels are divided by ";".
        ``folder``
            ``images`` and ``labels`` with files of equal names, or files NAME_image and NAME_label in one folder, with
            ``labels.json``: {"1": "liver"}, or {"labels": …, "modality": "CT"}. Files abdomen_NN_image and
            abdomen_NN_label without it have the labels of BTCV.
    root : str or Path
        Where the dataset lies.

    Returns
    -------
    Dataset
        The usable cases, and one sentence about each that is not.

    Raises
    ------
    InputError
        No such folder or layout, or not one usable case.
    """
    root = Path(root)
    if kind not in _READERS:
        raise InputError(f'There is no kind of dataset "{kind}": choose one of {", ".join(get_args(Kind))}.')
    if not root.exists():
        raise InputError(f"There is no file or folder {root}: check the path of the dataset.")
    return gather(_READERS[kind](root), root)


def _find_flare22(root: Path) -> Iterator[Case | InputError]:
    for images, labels in (("imagesTr", "labelsTr"), ("images", "labels")):
        if (root / images).is_dir() and (root / labels).is_dir():
            yield from _channel_cases(root / images, root / labels, ".nii.gz", 1, FLARE22, "CT", None)
            return
    raise InputError(f"{root} is no copy of FLARE22: give the folder that holds imagesTr and labelsTr.")


def _find_btcv(root: Path) -> Iterator[Case | InputError]:
    inside = (root / "RawData" / "Training", root / "Training", root)
    folder = next((f for f in inside if (f / "img").is_dir() and (f / "label").is_dir()), None)
    if folder is None:
        raise InputError(f"{root} is no copy of BTCV: give the folder that holds RawData/Training with img and label.")
    images = {p.name.removeprefix("img"): p for p in _volumes(folder / "img")}
    labels = {p.name.removeprefix("label"): p for p in _volumes(folder / "label")}
    for name in sorted(images.keys() | labels.keys(), key=natural):
        image = images.get(name, folder / "img" / f"img{name}")
        label = labels.get(name, folder / "label" / f"label{name}")
        yield attempt(case_of_files, f"BTCV_{_stem(name)}", (image,), label, BTCV, "CT")


# --- dataset.json -------------------------------------------------------------------------------


def _find_nnunet(root: Path) -> Iterator[Case | InputError]:
    path = root / "dataset.json"
    about = _read_json(path)
    names = _label_names(about.get("labels"), path)
    channels = about.get("channel_names") or about.get("modality") or {"0": ""}
    if not isinstance(channels, dict) or not all(key.isdecimal() for key in channels):
        raise InputError(f'{path} does not number its channels: write them as "channel_names": {{"0": "CT"}}.')
    listed = [str(channels[key]) for key in sorted(channels, key=int)]
    modality = _modality(listed)
    sequence = ", ".join(listed) if modality == "MR" else None
    ending = str(about.get("file_ending", ".nii.gz"))
    yield from _unnamed(names, path)
    for folder in ("imagesTr", "labelsTr"):
        if not (root / folder).is_dir():
            raise InputError(f"The folder {root} lacks {folder}, which goes with its dataset.json: complete the copy.")
    yield from _channel_cases(root / "imagesTr", root / "labelsTr", ending, len(listed), names, modality, sequence)


def _channel_cases(
    images: Path,
    labels: Path,
    ending: str,
    channels: int,
    names: Mapping[int, str],
    modality: Modality | None,
    sequence: str | None,
) -> Iterator[Case | InputError]:
    """Pair NAME.nii.gz among the labels with NAME_0000.nii.gz … or one NAME.nii.gz among the images."""
    with_images = {p.name.removesuffix(ending): p for p in _files(images, ending)}
    with_labels = {p.name.removesuffix(ending): p for p in _files(labels, ending)}
    plain = any(name in with_images for name in with_labels)
    of_images = {name if plain else re.sub(r"_\d{4}$", "", name) for name in with_images}
    for name in sorted(with_labels.keys() | of_images, key=natural):
        files = [with_images.get(f"{name}_{c:04d}", images / f"{name}_{c:04d}{ending}") for c in range(channels)]
        if name in with_images and not any(f.exists() for f in files):
            files = [with_images[name]]
        label = with_labels.get(name, labels / (name + ending))
        yield attempt(case_of_files, name, files, label, names, modality, sequence)


def _label_names(labels: Any, path: Path) -> dict[int, str]:
    """Names by value, from {"1": "liver"} (version 1), {"liver": 1} or {"whole": [1, 2]} (version 2).

    A value that a label names alone gets that name. A value that occurs only in regions of several values gets a name
    made of all their names, which means no structure.
    """
    wrong = InputError(f'{path} does not say what its labels mean: give "labels": {{"liver": 1}} or {{"1": "liver"}}.')
    if not isinstance(labels, dict) or not labels:
        raise wrong
    names: dict[int, str] = {}
    regions: dict[int, list[str]] = {}
    for key, value in labels.items():
        try:
            if isinstance(value, str):
                names[int(key)] = value
            elif isinstance(value, list) and len(value) != 1:
                for part in value:
                    regions.setdefault(int(part), []).append(key)
            else:
                names[int(value[0] if isinstance(value, list) else value)] = key
        except (TypeError, ValueError) as error:
            raise wrong from error
    return {value: "part of " + " and ".join(inside) for value, inside in regions.items()} | names


def _unnamed(names: Mapping[int, str], path: Path) -> list[InputError]:
    """A problem that lists the labels which the vocabulary lacks, if any; raises an error if it lacks all of them."""
    structures, unnamed = name_labels(names)
    listing = ", ".join(f'{value} "{name}"' for value, name in unnamed.items()) or "none"
    if not structures:
        raise InputError(
            f"{path} has no label that a structure of the vocabulary means (it has {listing}): "
            f"name them as Resources/anatomy.json does."
        )
    if not unnamed:
        return []
    return [InputError(f"{path} has labels that no structure of the vocabulary means ({listing}): they are left out.")]


def _modality(names: list[str]) -> Modality | None:
    """CT or MR, if the names of channels say so."""
    words = {word for name in names for word in re.split(r"[^a-z0-9]+", name.lower()) if word}
    if words & {"ct", "cect", "ncct", "cta"}:
        return "CT"
    mr = re.compile(r"mp?mri?|mri?|t[12].*|flair|adc|dwi|pd|swi|bold")
    return "MR" if any(mr.fullmatch(word) for word in words) else None


# --- users' own ---------------------------------------------------------------------------------


def _find_manifest(root: Path) -> Iterator[Case | InputError]:
    path = root / "manifest.csv" if root.is_dir() else root
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, skipinitialspace=True) if any(line)]
    except FileNotFoundError as error:
        raise InputError(f"There is no {path}: give the CSV file of the manifest.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file in UTF-8: save it as one.") from error
    columns = [column.strip().lower() for column in lines[0]] if lines else []
    missing = [column for column in ("image", "label", "modality") if column not in columns]
    if missing:
        raise InputError(
            f"{path} lacks the column {', '.join(missing)}: its first line must name image, label, modality."
        )
    for number, line in enumerate(lines[1:], 1):
        yield attempt(_manifest_case, path, number, dict(zip(columns, line, strict=False)))


def _manifest_case(path: Path, number: int, row: Mapping[str, str]) -> Case:
    cells = {column: value.strip() for column, value in row.items()}
    folder, place = path.parent, f"Row {number} of {path}"
    if not cells.get("image") or not cells.get("label"):
        raise InputError(f"{place} lacks the path of its image or label: fill it in.")
    modality = cells.get("modality", "").upper()
    if modality not in ("CT", "MR", "MRI", ""):
        raise InputError(f'{place} has the modality "{cells["modality"]}": write CT, MR or nothing.')
    label_names = cells.get("names") or cells.get("structures") or "labels.json"
    if label_names.lower().endswith(".json"):
        names = _names_file(folder / label_names)[0]
    else:
        parts = [re.split(r"[:=]", part, maxsplit=1) for part in re.split(r"[;|]", label_names) if part.strip()]
        if not all(len(part) == 2 and part[0].strip().isdecimal() for part in parts):
            raise InputError(f'{place} names its labels as "{label_names}": write them as "1: liver; 2: spleen".')
        names = {int(value): name.strip() for value, name in parts}
    images = [folder / part.strip() for part in cells["image"].split(";")]
    # File names may hold a patient's; the number of the row does not.
    identifier = cells.get("case") or f"case-{number:03d}"
    known: dict[str, Modality | None] = {"CT": "CT", "MR": "MR", "MRI": "MR"}
    return case_of_files(
        identifier, images, folder / cells["label"], names, known.get(modality), cells.get("sequence") or None
    )


def _find_folder(root: Path) -> Iterator[Case | InputError]:
    if (root / "images").is_dir() and (root / "labels").is_dir():
        images = {p.name: p for p in _volumes(root / "images")}
        labels = {p.name: p for p in _volumes(root / "labels")}
        image_of: Callable[[str], Path] = (root / "images").joinpath
        label_of: Callable[[str], Path] = (root / "labels").joinpath
    else:
        flat = {p.name: p for p in _volumes(root)}
        images = {n.replace("_image.", ".", 1): p for n, p in flat.items() if "_image." in n}
        labels = {n.replace("_label.", ".", 1): p for n, p in flat.items() if "_label." in n}
        image_of, label_of = (partial(_with_suffix, root, kind) for kind in ("_image", "_label"))
    all_names = sorted(images.keys() | labels.keys(), key=natural)
    if not all_names:
        raise InputError(
            f"{root} holds no labelled images: give a folder with images and labels of equal names, or with files "
            f"NAME_image.nii.gz and NAME_label.nii.gz."
        )
    names: dict[int, str]
    modality: Modality | None
    if (root / "labels.json").exists() or not all(re.fullmatch(r"abdomen_\d+\..*", name) for name in all_names):
        names, modality = _names_file(root / "labels.json")
    else:
        names, modality = BTCV, "CT"
    yield from _unnamed(names, root / "labels.json")
    for name in all_names:
        image, label = images.get(name, image_of(name)), labels.get(name, label_of(name))
        yield attempt(case_of_files, _stem(name), (image,), label, names, modality)


def _with_suffix(root: Path, suffix: str, name: str) -> Path:
    return root / f"{_stem(name)}{suffix}{name[len(_stem(name)) :]}"


def _names_file(path: Path) -> tuple[dict[int, str], Modality | None]:
    """Label names and modality of a ``labels.json``."""
    about = _read_json(path)
    if isinstance(about.get("labels"), dict):
        return _label_names(about["labels"], path), _modality([str(about.get("modality", ""))])
    return _label_names(about, path), None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"There is no {path}, which says what the labels mean: add it.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no JSON file in UTF-8: correct it.") from error
    if not isinstance(about, dict):
        raise InputError(f"{path} holds no JSON object: write {{...}} with what the labels mean.")
    return about


def _files(folder: Path, *endings: str) -> list[Path]:
    """Files of a folder with these endings, without hidden ones: archives made on a Mac have a ._ file beside each."""
    return [p for p in folder.iterdir() if p.name.endswith(endings) and not p.name.startswith(".") and p.is_file()]


def _volumes(folder: Path) -> list[Path]:
    return _files(folder, *_ENDINGS)


def _stem(name: str) -> str:
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


_READERS: dict[str, Callable[[Path], Iterator[Case | InputError]]] = {
    "flare22": _find_flare22,
    "chaos": find_chaos,
    "btcv": _find_btcv,
    "msd": _find_nnunet,
    "nnunet": _find_nnunet,
    "manifest": _find_manifest,
    "folder": _find_folder,
}
