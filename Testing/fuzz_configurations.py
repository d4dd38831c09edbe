"""A stranger's configurations, every key of every kind of model: nothing runs, nothing is fetched.

    python -m Testing.fuzz_configurations [--cases N] [--seed S] [--kind NAME]

Makes a small model of each kind that the library loads, and puts into each key of each of its configurations, one
after the other, what a loader might turn into code, a download or a crash: names of classes and modules, URLs, paths
of pickles, expressions, tags, values of wrong types; and into each mapping keys by which other libraries are told to
trust. Each case must end in a loaded model or in one sentence (`InputError`). A hook of the interpreter records, and
stops, whatever starts a process, opens a socket, imports the attacker's module, or opens the attacker's files; and
every attack would leave a file behind. Prints the counts, and each case that fails. The whole takes some twenty
minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import pickle
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "0"  # the hub may be asked: a question is a failure
    sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "Python")]

import torch  # noqa: E402 - after the variable that transformers reads once
import yaml  # noqa: E402

from XAICLIPLib.errors import InputError  # noqa: E402

CPU = torch.device("cpu")

MODULE = "attackers_module"
HOST = "attacker.example"

Place = tuple[str | int, ...]


# --- what is watched


class Trespass(OSError):
    """Something that no loading of a model may do."""


class Watch:
    """Records and stops, while it is on, what must not happen. An interpreter's hook cannot be taken off again."""

    STOPPED = (
        *(
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.spawn",
            "os.fork",
            "os.forkpty",
            "subprocess.Popen",
            "pty.spawn",
        ),
        *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"),
        *("http.client.connect", "ftplib.connect", "smtplib.connect", "webbrowser.open", "os.putenv"),
        "ctypes.dlopen",
    )

    def __init__(self) -> None:
        self.on = False
        self.theirs = ""
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        bad = event in self.STOPPED
        bad |= event == "import" and str(arguments[0]).partition(".")[0] == MODULE
        bad |= event == "open" and bool(self.theirs) and self.theirs in str(arguments[0])
        bad |= event == "pickle.find_class" and f"{arguments[0]}.{arguments[1]}".startswith(("os.", "posix.", MODULE))
        if bad:
            self.seen.append(f"{event} {str(arguments)[:100]}")
            raise Trespass(event)

    @contextlib.contextmanager
    def watching(self, theirs: Path) -> Iterator[list[str]]:
        """Watch a block; gives what was seen in it."""
        self.seen, self.theirs, self.on = [], str(theirs), True
        try:
            yield self.seen
        finally:
            self.on = False


_watch: list[Watch] = []


def watch() -> Watch:
    """The one hook of this interpreter."""
    if not _watch:
        _watch.append(Watch())
    return _watch[0]


# --- what is put into configurations


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.canary,)


@dataclass(frozen=True)
class Attacker:
    """The attacker's folder: a module that can be imported, a pickle, and the place where each would leave a trace."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Attacker:
        """Lay out the folder, and put it on the path of modules."""
        folder.mkdir(parents=True)
        made = cls(folder)
        (folder / f"{MODULE}.py").write_text(
            f"import os\nos.mkdir({str(made.canary)!r})\nclass Payload:\n    def __init__(self, *a, **k): pass\n"
        )
        (folder / "weights.pkl").write_bytes(pickle.dumps(Runs(made.canary)))
        (folder / "config.json").write_text(
            json.dumps({"model_type": "bert", "auto_map": {"AutoModel": f"{MODULE}.x"}})
        )
        sys.path.append(str(folder))
        return made

    @property
    def canary(self) -> Path:
        """What must never exist."""
        return self.folder.parent / "caught"

    def payloads(self) -> dict[str, Any]:
        """What is put into a key, by its name."""
        touch = f"mkdir '{self.canary}'"
        return {
            "a function": "os.system",
            "a class": f"{MODULE}.Payload",
            "a class of transformers": "BertModel",
            "a class of torch": "torch.nn.modules.module.Module",
            "a builtin": "builtins.exec",
            "a module": MODULE,
            "a module's file": str(self.folder / f"{MODULE}.py"),
            "a URL": f"https://{HOST}/weights.json",
            "a URL of files": f"file://{self.folder}/weights.pkl",
            "a repository": "attacker/kernels",
            "a repository with a scheme": "hf-hub:attacker/kernels",
            "a local model": f"local-dir:{self.folder}",
            "a folder": str(self.folder),
            "a pickle": str(self.folder / "weights.pkl"),
            "a way to a pickle": "../attacker/weights.pkl",
            "a share": f"\\\\{HOST}\\share\\weights.pkl",
            "an expression": f"$__import__('os').system({touch!r})",
            "an expression's import": f"$import {MODULE}",
            "a macro": f"%{self.folder}/config.json::x",
            "a template": "{{ ''.__class__.__mro__ }} ${7*7} %s {0.__class__}",
            "a target": {"_target_": "os.system", "command": touch},
            "a target of its own": {"_target_": f"{MODULE}.Payload", "_mode_": "callable"},
            "a reduction": {"__reduce__": ["os.system", [touch]], "py/reduce": ["os.system", [touch]]},
            "a tag": f"!!python/object/apply:os.system [{touch!r}]",
            "an auto map": {"auto_map": {"AutoConfig": f"{MODULE}.Payload"}, "trust_remote_code": True},
            "deep": DEEP,
            "nothing": None,
            "true": True,
            "negative": -1,
            "too large": 10**30,
            "not finite": 1e999,
            "empty text": "",
            "escapes": "\x1b]0;x\x07$\\frac{$=cmd|\n\ud800",
            "empty list": [],
            "empty mapping": {},
            "a list of lists": [[[]]],
        }

    def keys(self) -> dict[str, Any]:
        """What is put beside the keys of a mapping."""
        return {
            "auto_map": {"AutoConfig": f"{MODULE}.Payload", "AutoTokenizer": [f"{MODULE}.Payload", None]},
            "trust_remote_code": True,
            "weights_only": False,
            "use_safetensors": False,
            "_target_": "os.system",
            "imports": [f"$import {MODULE}"],
            "tokenizer_class": "BertModel",
            "tokenizer_kwargs": {"trust_remote_code": True, "bpe_path": str(self.folder / "weights.pkl")},
            "hf_tokenizer_name": str(self.folder),
            "hf_model_name": str(self.folder),
            "timm_model_name": f"local-dir:{self.folder}",
            "_attn_implementation": "attacker/kernels",
            "quantization_config": {"quant_method": "gptq"},
            "pretrained": str(self.folder / "weights.pkl"),
            "_name_or_path": str(self.folder),
            "__class__": f"{MODULE}.Payload",
        }


MORE = "a key more"
"""What the payload is called that is put beside the keys of a mapping."""

DEEP = "@@deep@@"
"""Stands for more brackets than a reader that calls itself can follow."""

_NESTED = "[" * 20_000 + "]" * 20_000


# --- the kinds of models


@dataclass(frozen=True)
class Kind:
    """A kind of model: where one lies, its configurations, and how it is loaded.

    Attributes
    ----------
    load
        Loads it, or raises an InputError.
    files
        Configurations, relative to the folder; JSON, YAML, or a checkpoint of plain values.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    load: Callable[[], Any]


def make_kinds(folder: Path) -> list[Kind]:
    """A small model of every kind; those whose packages are not installed are left out."""
    made: list[Kind] = []
    for maker in (_localizers, _bundle, _nnunet, _sam, _meshnet, _described, _torchscript, _record, _catalogue):
        try:
            made += maker(folder)
        except BaseException as error:  # pytest's Skipped, of a module of tests whose package is not installed
            if not isinstance(error, ImportError) and type(error).__name__ != "Skipped":
                raise
            print(f"left out: {maker.__name__.strip('_')} ({error})")
    return made


def _segmenter(path: Path, prepares: bool = False) -> Callable[[], Any]:
    """Loads a network and asks it what it is; ``prepares`` runs its preprocessing on a small scan too."""
    import numpy as np
    import SimpleITK as sitk

    from XAICLIPLib.segmentation.networks import formats

    scan = sitk.GetImageFromArray(np.linspace(-1000, 1000, 12**3, dtype=np.float32).reshape(12, 12, 12))

    def load() -> Any:
        loaded = formats.load(path, CPU)
        if loaded is None:
            raise InputError("It is recognised as nothing.")
        if prepares:
            loaded.prepare(scan)
        return dict(loaded.labels), loaded.window, loaded.provenance

    return load


def _localizers(folder: Path) -> list[Kind]:
    from localization.test_openclip_layouts import LAYOUTS

    from XAICLIPLib.localization.openclip import load_model

    made = []
    for name, make in LAYOUTS.items():
        place = make(folder / f"clip-{name}")
        small = ("open_clip_config.json", "config.json", "tokenizer_config.json", "special_tokens_map.json")
        files = tuple(file for file in (*small, "tokenizer.json") if (place / file).is_file())
        made.append(Kind(f"open_clip {name}", place, files, lambda p=place: load_model(p, CPU).tokenize(["the liver"])))
    return made


NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}


def _bundle(folder: Path) -> list[Kind]:
    from monai.networks.nets import UNet

    place = folder / "bundle"
    for name in ("configs", "models"):
        (place / name).mkdir(parents=True)
    steps = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1},
    ]
    inference = {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "spacing": [1.5, 1.5, 2.0],
        "network_def": {"_target_": "UNet", **NETWORK},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.5, "mode": "gaussian"},
        "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "softmax": True}]},
        "checkpointloader": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"},
    }
    (place / "configs" / "inference.json").write_text(json.dumps(inference))
    image = {"type": "image", "modality": "CT", "num_channels": 1, "channel_def": {"0": "image"}}
    data = {"inputs": {"image": image}, "outputs": {"pred": {"channel_def": {"0": "background", "1": "liver"}}}}
    metadata = {"name": "net", "version": "1", "license": "MIT", "network_data_format": data}
    (place / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.save(UNet(**NETWORK).state_dict(), place / "models" / "model.pt")
    files = ("configs/inference.json", "configs/metadata.json")
    return [Kind("MONAI bundle", place, files, _segmenter(place, prepares=True))]


def _nnunet(folder: Path) -> list[Kind]:
    from XAICLIPLib.segmentation.networks.nnunet_folder import import_nnunet

    try:
        import_nnunet()
    except InputError as error:
        raise ImportError(str(error)) from error
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    place = folder / "Dataset901_Ct" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (place / "fold_0").mkdir(parents=True)
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [24.0, 32.0, 34.0],
        "spacing": [2.5, 1.5, 1.5],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": dict(resampling) for what in ("data", "seg", "probabilities")},
        "architecture": architecture,
        "batch_dice": False,
    }
    intensities = {"mean": 176.0, "std": 28.0, "percentile_00_5": 134.0, "percentile_99_5": 239.0}
    plans = {
        "dataset_name": "Dataset901_Ct",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.5, 1.5, 1.5],
        "original_median_shape_after_transp": [24, 32, 34],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "licence": "CC0",
        "file_ending": ".nrrd",
    }
    (place / "plans.json").write_text(json.dumps(plans))
    (place / "dataset.json").write_text(json.dumps(dataset))
    given = copy.deepcopy(architecture)
    network = get_network_from_plans(*given.values(), 1, 2, deep_supervision=False)
    checkpoint = {"trainer_name": "nnUNetTrainer", "init_args": {"configuration": "3d_fullres"}}
    torch.save(checkpoint | {"network_weights": network.state_dict()}, place / "fold_0" / "checkpoint_final.pth")
    files = ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth")
    return [Kind("nnU-Net folder", place, files, _segmenter(place, prepares=True))]


def _sam(folder: Path) -> list[Kind]:
    from segmentation.networks.test_sam import save_tiny

    place = save_tiny(folder / "sam")
    files = tuple(name for name in ("config.json", "preprocessor_config.json") if (place / name).is_file())
    return [Kind("SAM folder", place, files, _segmenter(place))]


def _meshnet(folder: Path) -> list[Kind]:
    from segmentation.networks.test_layers_model import write_model

    write_model(folder / "meshnet")
    (folder / "meshnet" / "colormap.json").write_text(json.dumps({"labels": ["Unknown", "Brain"]}))
    return [Kind("MeshNet", folder / "meshnet", ("model.json", "colormap.json"), _segmenter(folder / "meshnet"))]


DESCRIPTION: dict[str, Any] = {
    "name": "liver-net",
    "labels": {0: "background", 1: "liver"},
    "activation": "softmax",
    "modality": "CT",
    "inputs": ["image"],
    "orientation": "RAS",
    "spacing_mm": [1.5, 1.5, 2.0],
    "intensity": {"range": [-175, 250], "to": [0, 1]},
    "window": {"size": [16, 16, 16], "overlap": 0.5, "mode": "gaussian"},
    "licence": "MIT",
    "version": "1.0",
}


def _described(folder: Path) -> list[Kind]:
    from monai.networks.nets import UNet

    place = folder / "described"
    place.mkdir()
    given = {**DESCRIPTION, "network": {"name": "UNet", "arguments": dict(NETWORK)}, "weights": "net.pt"}
    (place / "net.yaml").write_text(yaml.safe_dump(given))
    torch.save(UNet(**NETWORK).state_dict(), place / "net.pt")
    return [Kind("description of a MONAI network", place, ("net.yaml",), _segmenter(place / "net.yaml", prepares=True))]


def _torchscript(folder: Path) -> list[Kind]:
    place = folder / "torchscript"
    place.mkdir()
    (place / "net.yaml").write_text(yaml.safe_dump({**DESCRIPTION, "torchscript": "net.ts"}))
    torch.jit.script(torch.nn.Conv3d(1, 2, 1)).save(str(place / "net.ts"))
    return [Kind("description of TorchScript", place, ("net.yaml",), _segmenter(place / "net.yaml", prepares=True))]


def _record(folder: Path) -> list[Kind]:
    from XAICLIPLib.reporting import record

    (folder / "record").mkdir()
    line = {way: {"scores": [1.0, 0.5], "area": 0.7} for way in ("deletion", "insertion")}
    kept = {
        "format": record.FORMAT,
        "prompt": "liver",
        "complete": True,
        "warnings": ["careful"],
        "target": {"name": "liver", "label": 1, "voxels": "predicted"},
        "labels": {"1": "liver"},
        "input": {"size": [4, 5, 6], "spacing_mm": [1.0, 1.0, 2.0], "modality": "CT", "voxels_sha256": "0" * 64},
        "region": {
            "source": "guided",
            "volume_ml": 1.0,
            "share_of_body": 0.1,
            "agreement_with_prediction": {"dice": 0.5},
        },
        "measurements": {"structures": [{"structure": "liver", "score_lost": 0.1, "volume_ml": 3.0}]},
        "models": {"segmenter": {"name": "net"}, "localizer": {"name": "clip"}},
        "parameters": {
            "method": "occlusion",
            "described": "x",
            "baseline": "air",
            "score": "soft-dice",
            "region": "guided",
        },
        "versions": {"torch": "2"},
        "timings_s": {"segment": 0.5},
        "reliability": [],
        "faithfulness": {
            "volumes_mm3": [1.0, 2.0],
            "map": line,
            "controls": {"random": line},
            "lead": {"deletion": 0.1, "insertion": None},
        },
        "stability": {},
    }
    path = folder / "record" / "explanation.json"
    path.write_text(json.dumps(kept))
    return [Kind("record of an explanation", folder / "record", (path.name,), lambda: record.read(path))]


def _catalogue(folder: Path) -> list[Kind]:
    from XAICLIPLib.models.catalogue_file import read_catalogue

    (folder / "catalogue").mkdir()
    file = {"url": "https://models.example/net.zip", "sha256": "0" * 64, "size": 1000}
    entry = {
        "name": "net",
        "kind": "segmenter",
        "format": "bundle",
        "title": "A net",
        "modality": "CT",
        "licence": "MIT",
    }
    entry |= {"structures": ["liver"], "source": {"files": {"net.zip": file}}, "citation": "A. Author, 2020"}
    path = folder / "catalogue" / "list.json"
    path.write_text(json.dumps({"models": [entry]}))
    return [Kind("catalogue of models", folder / "catalogue", (path.name,), lambda: read_catalogue(path))]


# --- cases


@dataclass(frozen=True)
class Case:
    """One value in one place of one configuration."""

    kind: Kind
    file: str
    place: Place
    payload: str
    value: Any = field(repr=False)


def places(content: Any, most: int = 3) -> Iterator[Place]:
    """Every key of every mapping, and of lists the first and last places, for the others are like them."""
    if isinstance(content, Mapping):
        keys = list(content)
        if len(keys) > 60:  # the words of a vocabulary are no keys
            keys = keys[:most]
        parts = [(key, content[key]) for key in keys]
    elif isinstance(content, list):
        numbers = list(range(len(content)))
        parts = [(n, content[n]) for n in dict.fromkeys([*numbers[: most - 1], *numbers[-1:]])]
    else:
        return
    for key, value in parts:
        yield (key,)
        for inner in places(value, most):
            yield (key, *inner)


def mappings(content: Any) -> Iterator[Place]:
    """Every mapping, the top included."""
    if isinstance(content, Mapping):
        yield ()
    for place in places(content):
        if isinstance(_at(content, place), Mapping):
            yield place


def cases(kinds: list[Kind], attacker: Attacker) -> list[Case]:
    """All of them."""
    made = []
    for kind in kinds:
        for file in kind.files:
            content = read(kind.folder / file)
            made += [
                Case(kind, file, place, payload, value)
                for place in places(content)
                for payload, value in attacker.payloads().items()
            ]
            made += [
                Case(kind, file, (*place, key), MORE, value)
                for place in mappings(content)
                for key, value in attacker.keys().items()
                if key not in _at(content, place)
            ]
    return made


def counts(made: list[Case]) -> dict[str, int]:
    """Keys of each kind, in its order, without those that are put beside them."""
    found = dict.fromkeys((c.kind.name, c.file, c.place) for c in made if c.payload != MORE)
    return dict(Counter(name for name, _file, _place in found))


def read(path: Path) -> Any:
    """The content of a configuration; of a checkpoint all but its weights."""
    if path.suffix == ".pth":
        return {k: v for k, v in torch.load(path, weights_only=True).items() if k != "network_weights"}
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def write(path: Path, content: Any, before: bytes) -> None:
    """Write a changed configuration."""
    if path.suffix == ".pth":
        weights = torch.load(io.BytesIO(before), weights_only=True)["network_weights"]
        with contextlib.suppress(Exception):  # a value that torch.save cannot hold attacks nobody
            torch.save({"network_weights": weights, **content}, path)
        return
    if path.suffix == ".json":
        text = json.dumps(content)
    else:
        # Tags as YAML would read them, where the whole value is one.
        text = json.dumps(content, ensure_ascii=True)
        for tag in ("!!python/object/apply:os.system",):
            text = "\n".join(_untag(line, tag) for line in text.splitlines())
    path.write_text(text.replace(json.dumps(DEEP), _NESTED), encoding="utf-8")


def _untag(line: str, tag: str) -> str:
    start = line.find(f'"{tag}')
    if start < 0:
        return line
    end = line.index('"', start + 1)
    return line[:start] + line[start + 1 : end] + line[end + 1 :]


def _at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content


def _changed(content: Any, place: Place, value: Any) -> Any:
    made = copy.deepcopy(content)
    _at(made, place[:-1])[place[-1]] = value
    return made


def run(case: Case, attacker: Attacker) -> tuple[str, str]:
    """Load the changed model: ``loads``, ``refused``, or ``failed`` with what went wrong."""
    path = case.kind.folder / case.file
    before = path.read_bytes()
    output, trouble, outcome = io.StringIO(), "", "loads"
    try:
        write(path, _changed(read(path), case.place, case.value), before)
        with (
            watch().watching(attacker.folder) as seen,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            try:
                case.kind.load()
            except InputError as error:
                outcome = "refused"
                if "\n" in str(error) or not 10 < len(str(error)) < 2000:
                    trouble = f"no sentence: {str(error)[:200]!r}"
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                trouble = f"{type(error).__name__}: {str(error)[:200]}"
        trouble = "; ".join(filter(None, [*seen, trouble]))
        if attacker.canary.exists():
            trouble += "; code ran"
            attacker.canary.rmdir()
    finally:
        path.write_bytes(before)
    return ("failed", trouble) if trouble else (outcome, "")


@dataclass(frozen=True)
class Outcome:
    """How all cases ended."""

    keys: Mapping[str, int]
    cases: int
    ended: Mapping[str, Counter[str]]
    failures: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        lines = []
        for kind, keys in self.keys.items():
            ended = ", ".join(f"{number} {how}" for how, number in sorted(self.ended.get(kind, {}).items()))
            lines.append(f"{kind:<32} {keys:4} keys: {ended}")
        total = sum(sum(ended.values()) for ended in self.ended.values())
        lines.append(
            f"{sum(self.keys.values())} keys of {len(self.keys)} kinds make {self.cases} cases; "
            f"{total} tried in {self.seconds:.0f} s, "
            f"{len(self.failures)} failed"
        )
        return "\n".join([*lines, *self.failures])


def fuzz(
    folder: Path, count: int | None = None, seed: int = 0, only: str = "", seconds: float | None = None, file: str = ""
) -> Outcome:
    """Run all cases, or a random sample of them of which each kind has its share.

    Parameters
    ----------
    folder
        For the models and the attacker.
    count
        How many cases; None for all.
    seed
        Of the sample.
    only
        A part of the name of the only kinds to try.
    seconds
        After which no case is begun.
    file
        A part of the name of the only configurations to try.
    """
    attacker = Attacker.make(folder / "attacker")
    kinds = [kind for kind in make_kinds(folder) if only in kind.name]
    for kind in kinds:
        kind.load()  # as it is, it loads; and what is loaded lazily is there before anything is watched
    made = [case for case in cases(kinds, attacker) if file in case.file]
    keys = counts(made)
    chosen = made
    if count is not None:
        generator = random.Random(seed)
        by_kind = [[case for case in made if case.kind is kind] for kind in kinds]
        share = max(1, count // len(kinds))
        chosen = [case for listed in by_kind for case in generator.sample(listed, min(share, len(listed)))]
    ended: dict[str, Counter[str]] = {kind.name: Counter() for kind in kinds}
    failures = []
    began = time.monotonic()
    try:
        for case in chosen:
            if seconds is not None and time.monotonic() - began > seconds:
                break
            how, trouble = run(case, attacker)
            ended[case.kind.name][how] += 1
            if trouble:
                where = "/".join(map(str, case.place))
                failures.append(f"  {case.kind.name}, {case.file}, {where}, {case.payload}: {trouble}")
    finally:
        sys.path.remove(str(attacker.folder))
    return Outcome(keys, len(made), ended, tuple(failures), time.monotonic() - began)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, help="a sample of so many; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="a part of the name of the only kinds to try")
    parser.add_argument("--file", default="", help="a part of the name of the only configurations to try")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="xaiclip-fuzz-") as folder:
        outcome = fuzz(Path(folder), options.cases, options.seed, options.kind, file=options.file)
    print(outcome)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
