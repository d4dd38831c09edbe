"""Reading a folder that nnU-Net trained, without running any code that it names or contains.

nnU-Net imports classes by names from ``plans.json`` and the checkpoint, and unpickles the checkpoint. Here names must
be those of nnU-Net's own packages, and checkpoints are read as weights and numbers only.

References
----------
Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature Methods
2021; https://github.com/MIC-DKFZ/nnUNet, documentation/explanation_plans_files.md.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from XAICLIPLib.errors import TRUST, InputError, installing, reason
from XAICLIPLib.segmentation.networks.trained_folders import CHECKPOINTS, find_checkpoint
from XAICLIPLib.segmentation.networks.trained_folders import folds as folds_of
from XAICLIPLib.system.weights import NUMPY_NUMBERS, load_plain

_ALLOWED_PACKAGES = ("dynamic_network_architectures", "nnunetv2", "torch.nn")

_NETWORK_PACKAGES = (
    "dynamic_network_architectures.architectures",
    "dynamic_network_architectures.building_blocks",
    "torch.nn",
)
"""Packages of networks and layers. No other module is imported just because a file names it."""

_UNCHANGED_NETWORK_TRAINERS = frozenset(
    (
        "nnUNetTrainer",
        "nnUNetTrainerNoMirroring",
        "nnUNetTrainer_DASegOrd0",
        "nnUNetTrainer_DASegOrd0_NoMirroring",
        "nnUNetTrainer_2000epochs_NoMirroring",
        "nnUNetTrainer_4000epochs_NoMirroring",
        "nnUNetTrainer_onlyMirror01",
        # of TotalSegmentator, unknown to nnU-Net
        "nnUNetTrainer_MOSAIC_1k_QuarterLR_NoMirroring",
        "nnUNetTrainerDiceTopK10Loss_2000epochs",
        "nnUNetTrainerSkeletonRecall",
    )
)
"""Trainers that change how a network is trained but not the network. They need not be imported, which takes longer than
all the rest of loading."""


@dataclass(frozen=True)
class TrainedFolder:
    """The content of a trained folder.

    Attributes
    ----------
    path
        The folder with ``plans.json`` and ``dataset.json``.
    fold
        Name of the chosen fold, such as ``fold_0``.
    checkpoint
        Its checkpoint file.
    plans, dataset
        The two JSON files.
    weights
        State of the network.
    configuration
        Name of the plans' configuration that was trained.
    trainer
        Name of the trainer's class.
    """

    path: Path
    fold: str
    checkpoint: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    weights: dict[str, torch.Tensor]
    configuration: str
    trainer: str


def read_folder(path: Path) -> TrainedFolder:
    """Read a trained folder, or one of its folds.

    Parameters
    ----------
    path
        ``DatasetXXX_Name/Trainer__Plans__Configuration``, whose first fold with a checkpoint is taken, or a ``fold_N``
        in it.

    Raises
    ------
    InputError
        A file is missing or unreadable, or the checkpoint holds more than weights and numbers.
    """
    path = Path(path)
    if path.name.startswith("fold_"):
        folder, fold = path.parent, path
        if find_checkpoint(path) is None:
            raise InputError(f"{path} holds no {' or '.join(CHECKPOINTS)}: give a fold that was trained.")
    else:
        folds = folds_of(path)
        if not folds:
            raise InputError(
                f"{path} has no trained fold: give nnU-Net's folder Trainer__Plans__Configuration, with a "
                f"fold_0/{CHECKPOINTS[0]} in it."
            )
        folder, fold = path, folds[0]
    checkpoint = find_checkpoint(fold)
    assert checkpoint is not None  # both branches above make sure of it
    plans, dataset = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
    content = _read_checkpoint(checkpoint)
    try:
        weights, trainer = content["network_weights"], content["trainer_name"]
        configuration = content["init_args"]["configuration"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"The checkpoint {checkpoint} was not saved by nnU-Net's trainer ({error} is missing): give one that was."
        ) from error
    if not (isinstance(weights, Mapping) and isinstance(trainer, str) and isinstance(configuration, str)):
        raise InputError(f"The checkpoint {checkpoint} was not saved by nnU-Net's trainer: give one that was.")
    # Data parallel training adds this prefix; nnU-Net removes it too.
    weights = {str(name).removeprefix("module."): value for name, value in weights.items()}
    return TrainedFolder(folder, fold.name, checkpoint, plans, dataset, weights, configuration, trainer)


@contextmanager
def without_output() -> Iterator[None]:
    """Discard what nnU-Net prints: the standard output may carry the worker's messages."""
    with redirect_stdout(io.StringIO()):
        yield


def import_nnunet() -> None:
    """Import nnU-Net, silently.

    Raises
    ------
    InputError
        It is not installed.
    """
    try:
        with without_output():
            importlib.import_module("nnunetv2.paths")  # which prints that its environment variables are not set
            importlib.import_module("nnunetv2.utilities.plans_handling.plans_handler")
    except ImportError as error:
        way = installing("nnunetv2")
        raise InputError(
            f"A network trained by nnU-Net needs the Python package nnunetv2 ({error}): install it with {way}.",
            way,
        ) from error


def refuse_foreign_classes(folder: TrainedFolder, configuration: Mapping[str, Any]) -> None:
    """Refuse a configuration that names classes or functions from outside nnU-Net's own packages.

    Parameters
    ----------
    folder
        The trained folder with the plans.
    configuration
        The trained configuration of ``plans.json``, with inheritance resolved and its architecture spelled out.

    Raises
    ------
    InputError
        A class or function is refused; the message names the first.
    """
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    architecture = configuration["architecture"]
    arguments = architecture["arch_kwargs"]
    named = [architecture["network_class_name"], *(arguments[key] for key in architecture["_kw_requires_import"])]
    for name in named:
        if name is not None and not _is_layer(name):
            raise _refusal(folder, name)
    required = [(configuration["preprocessor_name"], "preprocessing", DefaultPreprocessor)]
    required += [(n, "preprocessing.normalization", ImageNormalization) for n in configuration["normalization_schemes"]]
    if "label_manager" in folder.plans:
        required.append((folder.plans["label_manager"], "utilities.label_handling", LabelManager))
    for name, subpackage, base in required:
        found_class = find_class(name, subpackage)
        if not (isinstance(found_class, type) and issubclass(found_class, base) and _is_within(found_class.__module__)):
            raise _refusal(folder, name)
    for key in ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"):
        function = find_class(configuration[key], "preprocessing.resampling")
        if not str(getattr(function, "__module__", "")).startswith("nnunetv2.preprocessing.resampling."):
            raise _refusal(folder, configuration[key])


def find_trainer(folder: TrainedFolder, trust: bool) -> Any:
    """The trainer's class if it may build another network than that of the plans, otherwise None.

    Where the user trusts the folder, an unknown trainer is taken to build the plans' network: the weights would not fit
    most other networks.

    Raises
    ------
    InputError
        The trainer is unknown, and the folder not trusted.
    """
    if folder.trainer in _UNCHANGED_NETWORK_TRAINERS:
        return None
    module = _module_defining(folder.trainer)
    if module is not None:
        with without_output():
            return getattr(importlib.import_module(module), folder.trainer)
    if trust:
        return None
    raise _refusal(folder, folder.trainer)


def find_class(name: Any, subpackage: str) -> Any:
    """The class or function that nnU-Net finds by a name in one of its subpackages; None where there is none."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    if not isinstance(name, str):
        return None
    folder = str(Path(nnunetv2.__path__[0]).joinpath(*subpackage.split(".")))
    with without_output():
        return recursive_find_python_class(folder, name, f"nnunetv2.{subpackage}")


def _module_defining(trainer: str) -> str | None:
    """The module of nnU-Net that defines a trainer.

    The source text is searched: nnU-Net itself imports one trainer after the other until it finds the class, and
    some of them need packages that may be missing.
    """
    import nnunetv2

    root = Path(nnunetv2.__path__[0])
    definition = re.compile(rf"^class {re.escape(trainer)}\(", re.MULTILINE)
    for path in sorted((root / "training" / "nnUNetTrainer").rglob("*.py")):
        if definition.search(path.read_text(encoding="utf-8")):
            return ".".join(("nnunetv2", *path.relative_to(root).with_suffix("").parts))
    return None


def _is_layer(name: Any) -> bool:
    """Whether a name is that of a network or layer of nnU-Net's own packages.

    The module is imported and only the last part looked up in it, so that no path leads through one module's import of
    another ("nnunetv2.paths.os.system").
    """
    if not isinstance(name, str):
        return False
    module, _, last = name.rpartition(".")
    if not _is_within(module, _NETWORK_PACKAGES):
        return False
    try:
        with without_output():
            layer = getattr(importlib.import_module(module), last, None)
    except ImportError:
        layer = None
    if layer is None and module.startswith("dynamic_network_architectures."):
        layer = _find_moved_network(last)
    return isinstance(layer, type) and issubclass(layer, torch.nn.Module) and _is_within(layer.__module__)


def _find_moved_network(last: str) -> Any:
    """A network that is no longer in the module that old plans name, found where nnU-Net looks for it."""
    import dynamic_network_architectures
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = str(Path(dynamic_network_architectures.__path__[0]) / "architectures")
    return recursive_find_python_class(folder, last, "dynamic_network_architectures.architectures")


def _is_within(module: str, packages: tuple[str, ...] = _ALLOWED_PACKAGES) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _refusal(folder: TrainedFolder, name: Any) -> InputError:
    return InputError(
        f"The trained folder {folder.path} names {name!r}, which is not a part of nnU-Net and could run any code: if "
        f"you trust it, {TRUST}.",
        TRUST,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} of the trained folder cannot be read ({reason(error)}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} of the trained folder holds no mapping: get the file again.")
    return content


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    try:
        content = load_plain(path, NUMPY_NUMBERS)  # the trainer's log holds NumPy numbers
    except pickle.UnpicklingError as error:  # its own message suggests loading without the safety
        raise InputError(f"The checkpoint {path} is damaged or holds more than weights: get the file again.") from error
    except Exception as error:  # a damaged or hostile file fails in many ways
        raise InputError(f"The checkpoint {path} cannot be read ({reason(error)}): get the file again.") from error
    if not isinstance(content, dict):
        raise InputError(f"The checkpoint {path} was not saved by nnU-Net's trainer: give one that was.")
    return content
