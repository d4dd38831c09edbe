"""nnU-Net's networks against nnU-Net's own predictor, on folders that its own trainer saved."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging import ras_affine, resample_labels
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import target_score
from XAICLIPLib.scoring.target import Target
from XAICLIPLib.segmentation.decision import Decision
from XAICLIPLib.segmentation.networks.nnunet import NnUNetSegmenter, closest_canonical, is_nnunet
from XAICLIPLib.segmentation.networks.nnunet_folder import _read_checkpoint
from XAICLIPLib.segmentation.prediction import Prediction
from XAICLIPLib.segmentation.sliding_window import predict_logits

CPU = torch.device("cpu")
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
SAGITTAL = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def oblique(base: tuple[float, ...]) -> tuple[float, ...]:
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.2, -0.15, 0.3).GetMatrix()
    return tuple((np.reshape(turn, (3, 3)) @ np.reshape(base, (3, 3))).ravel().tolist())


@dataclass(frozen=True)
class Scan:
    """A volume, zero around a body that lies off its middle."""

    variant: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    direction: tuple[float, ...] = AXIAL

    def channels(self, number: int) -> list[sitk.Image]:
        return [self.channel(n) for n in range(number)]

    def channel(self, number: int) -> sitk.Image:
        generator = np.random.default_rng(number)
        shape = self.size[::-1]
        smooth = ndimage.gaussian_filter(generator.normal(size=shape), 5)
        values = 180 + 60 * smooth / smooth.std()
        inside = np.zeros(shape, bool)
        inside[1:-2, 3:-5, 6:-2] = True
        image = sitk.GetImageFromArray(np.where(inside, values, 0).astype(np.float32))
        image.SetSpacing(self.spacing)
        image.SetDirection(self.direction)
        image.SetOrigin((-31.5, 12.25, 140.0))
        return image


CASES = {
    "spacing of the plans": Scan("plain", (44, 40, 22), (1.5, 1.5, 2.5)),
    "anisotropic": Scan("plain", (56, 52, 14), (1.1, 0.9, 4.4)),
    "oblique": Scan("plain", (40, 36, 26), (1.7, 1.3, 2.1), oblique(AXIAL)),
    "smaller than the patch": Scan("plain", (30, 19, 13), (1.2, 1.5, 2.5)),
    "transposed": Scan("transposed", (40, 36, 22), (1.0, 1.6, 2.2), oblique(SAGITTAL)),
    "slices": Scan("slices", (40, 30, 9), (1.3, 1.3, 3.0)),
    "slices smaller than the patch": Scan("slices", (26, 20, 9), (1.5, 1.5, 3.0)),
    "reoriented when read": Scan("canonical", (36, 34, 30), (2.0, 1.3, 1.6), oblique(SAGITTAL)),
    "regions of two channels": Scan("regions", (42, 40, 20), (1.2, 1.4, 2.8), oblique(AXIAL)),
}


@lru_cache(maxsize=12)
def predictor(folder: Path) -> Any:
    """nnU-Net's own, without mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    made = nnUNetPredictor(0.5, True, False, False, CPU, allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(folder), (0,))
    return made


@contextmanager
def in_single_precision() -> Iterator[None]:
    """nnU-Net sums tiles in half precision, which is off by some 1e-3: here it sums them in single precision."""
    half = torch.half
    torch.half = torch.float32
    try:
        yield
    finally:
        torch.half = half


@lru_cache(maxsize=12)
def segmenter(folder: Path) -> NnUNetSegmenter:
    return NnUNetSegmenter(folder, CPU)


def joined(channels: list[sitk.Image]) -> sitk.Image:
    return channels[0] if len(channels) == 1 else sitk.Compose(channels)


def write(channels: list[sitk.Image], folder: Path) -> list[str]:
    paths = [str(folder / f"scan_{n:04d}.nii.gz") for n in range(len(channels))]
    for image, path in zip(channels, paths, strict=True):
        sitk.WriteImage(image, path)
    return paths


def run(network: NnUNetSegmenter, image: sitk.Image) -> tuple[Prediction, Tensor]:
    """A prediction, and its logits."""
    prepared = network.prepare(image)
    tiling = network.window(tuple(prepared.tensor.shape[1:]))
    with torch.inference_mode():
        logits = predict_logits(network.logits, prepared.tensor, tiling)
    decision = Decision(logits.shape[1:], network.activation, logits.device)
    decision.add(tuple(slice(0, n) for n in logits.shape[1:]), logits)
    return Prediction(network, prepared, prepared.tensor, tiling, *decision.finished()), logits


def preprocessed(oracle: Any, paths: list[str]) -> Tensor:
    preprocessor = oracle.configuration_manager.preprocessor_class(verbose=False)
    data = preprocessor.run_case(paths, None, oracle.plans_manager, oracle.configuration_manager, oracle.dataset_json)[
        0
    ]
    return torch.from_numpy(np.asarray(data, np.float32))


def agreement(drawn: np.ndarray, expected: np.ndarray) -> float:
    """Share of equal voxels, less those at a border, where nnU-Net and `label_map` interpolate in two ways."""
    within = ndimage.maximum_filter(expected, 3) == ndimage.minimum_filter(expected, 3)
    assert within.mean() > 0.4
    return float((drawn == expected)[within].mean())


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_predictor_of_nnunet(name: str, trained: dict[str, Path], tmp_path: Path) -> None:
    scan = CASES[name]
    network, oracle = segmenter(trained[scan.variant]), predictor(trained[scan.variant])
    channels = scan.channels(len(network.inputs))
    data = preprocessed(oracle, write(channels, tmp_path))
    with in_single_precision():
        expected = oracle.predict_logits_from_preprocessed_data(data)
    found, logits = run(network, joined(channels))
    # A NIfTI file rounds the spacing and the orientation to single precision.
    assert torch.allclose(found.prepared.tensor, data, atol=1e-5)
    assert logits.shape == expected.shape
    assert expected.std() > 0.02
    assert (logits - expected).abs().max() < 1e-4
    assert len(found.tiling.patches) > 1 or "patch" in name


@pytest.mark.parametrize("name", CASES)
def test_label_map_is_that_of_nnunet_in_the_geometry_of_the_input(
    name: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    scan = CASES[name]
    network, oracle = segmenter(trained[scan.variant]), predictor(trained[scan.variant])
    channels = scan.channels(len(network.inputs))
    reader = oracle.plans_manager.image_reader_writer_class()
    data, properties = reader.read_images(write(channels, tmp_path))
    with in_single_precision():
        label_map = oracle.predict_single_npy_array(data, properties)
    reader.write_seg(label_map, str(tmp_path / "expected.nii.gz"), properties)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "expected.nii.gz")))
    found, logits = run(network, joined(channels))
    if network.activation == "sigmoid":  # nnU-Net paints the second region over the first
        core = found.prepared.as_image((logits[1] > 0).to(torch.uint8))
        either = found.prepared.as_image((logits > 0).any(0).to(torch.uint8))
        for region, there in ((core, expected == 2), (either, expected > 0)):
            drawn = sitk.GetArrayFromImage(resample_labels(region, channels[0])) > 0
            assert 0.02 < there.mean() < 0.98
            assert agreement(drawn, there) > 0.99
        return
    drawn = sitk.GetArrayFromImage(found.label_map(channels[0]))
    assert len(np.unique(expected)) > 1
    assert agreement(drawn, expected) > 0.99
    share, moved = (drawn == expected).mean(), (np.roll(drawn, 2, 2) == expected).mean()
    assert share > 0.96
    assert moved < share - 0.03
    if name == "spacing of the plans":
        assert (drawn == expected).all()


@pytest.mark.parametrize("direction", [AXIAL, oblique(AXIAL), SAGITTAL, oblique(SAGITTAL)], ids=str)
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 2.5), (1.1, 1.9, 1.4)], ids=str)
def test_affine_tells_where_the_preprocessed_voxels_lie(
    spacing: tuple[float, float, float], direction: tuple[float, ...], trained: dict[str, Path]
) -> None:
    """Three channels hold the coordinates of their voxels; resampled, cropped and transposed, they still do."""
    image = Scan("coordinates", (30, 26, 24), spacing, direction).channel(0)
    affine = ras_affine(image)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), -1)
    place = index @ affine[:3, :3].T + affine[:3, 3]
    place[:, :, :4] = place[:, :5] = place[-3:] = 0  # which is cut off
    channels = [sitk.GetImageFromArray(place[..., c].astype(np.float32).transpose(2, 1, 0)) for c in range(3)]
    for channel in channels:
        channel.CopyInformation(image)
    prepared = segmenter(trained["coordinates"]).prepare(sitk.Compose(channels))
    shape = prepared.tensor.shape[1:]
    assert shape != tuple(image.GetSize())
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    told = np.moveaxis(index @ prepared.affine[:3, :3].T + prepared.affine[:3, 3], -1, 0)
    middle = (slice(None), *[slice(4, -4)] * 3)  # at the ends, splines bend
    assert np.abs(prepared.tensor.numpy()[middle] - told[middle]).max() < 0.02


@pytest.mark.parametrize("direction", [AXIAL, oblique(AXIAL), SAGITTAL, oblique(SAGITTAL)], ids=str)
def test_canonical_image_is_that_of_nibabel(direction: tuple[float, ...], tmp_path: Path) -> None:
    import nibabel

    image = Scan("", (12, 16, 14), (1.0, 2.0, 1.5), direction).channel(0)
    (path,) = write([image], tmp_path)
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    found = closest_canonical(image)
    assert np.array_equal(sitk.GetArrayFromImage(found).T, expected.get_fdata())
    assert np.allclose(ras_affine(found), expected.affine, atol=1e-4)


@pytest.mark.parametrize("variant", ["plain", "slices", "regions"])
def test_incremental_score_is_that_of_nnunet_on_the_perturbed_volume(variant: str, trained: dict[str, Path]) -> None:
    scan = Scan(variant, (44, 40, 22), (1.5, 1.5, 2.5), oblique(AXIAL))
    network, oracle = segmenter(trained[variant]), predictor(trained[variant])
    found, _ = run(network, joined(scan.channels(len(network.inputs))))
    shape = found.volume.shape[1:]
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    distance = sum((a - n / 2) ** 2 for a, n in zip(axes, shape, strict=True)).sqrt()
    target = Target("liver", 1, distance <= 4, distance <= 6)
    baseline = torch.full_like(found.volume, -0.5)
    scorer = Scorer(network.logits, found.volume, baseline, found.tiling, target, network.activation, "soft dice", 3)
    middle = tuple(slice(n // 2 - 3, n // 2 + 2) for n in shape)
    corner = tuple(slice(0, n // 2 - 2) for n in shape)
    perturbations = [Perturbation(middle), Perturbation(corner, 0.4), Perturbation((middle[0], *corner[1:]))]

    def full(perturbation: Perturbation | None) -> float:
        volume = found.volume.clone()
        if perturbation is not None:
            here = (slice(None), *perturbation.box)
            strength = float(perturbation.strength)
            volume[here] = (1 - strength) * volume[here] + strength * baseline[here]
        with in_single_precision():
            logits = oracle.predict_logits_from_preprocessed_data(volume)
        inside = logits[:, target.voxels]
        return float(target_score("soft dice", inside, target.reference[target.voxels], 1, network.activation))

    lost = dict(pair for batch in scorer.lost(perturbations) for pair in batch)
    expected = [full(None) - full(p) for p in perturbations]
    assert [lost[n] for n in range(len(perturbations))] == pytest.approx(expected, abs=1e-4)
    assert max(abs(e) for e in expected) > 1e-3


def test_gradients_follow_through_the_network(trained: dict[str, Path]) -> None:
    network = segmenter(trained["plain"])
    patches = torch.rand(1, 1, 16, 16, 32, requires_grad=True)
    network.logits(patches)[:, 1].sum().backward()
    assert patches.grad is not None and patches.grad.abs().max() > 0
    assert all(not weight.requires_grad for weight in network.network.parameters())


def test_what_is_known_of_a_network(trained: dict[str, Path]) -> None:
    plain, regions = segmenter(trained["plain"]), segmenter(trained["regions"])
    assert (plain.inputs, plain.modality, plain.activation) == (("image",), "CT", "softmax")
    assert plain.labels == {0: "background", 1: "liver", 2: "spleen"}
    assert (regions.inputs, regions.modality, regions.activation) == (("T1", "FLAIR"), "MR", "sigmoid")
    assert regions.labels == {0: "whole tumour", 1: "core"}
    known = plain.provenance
    assert known["kind"] == "nnU-Net" and known["fold"] == "fold_0" and known["mirroring"].startswith("off")
    assert len(known["sha256"]) == 64 and known["licence"] == "unknown" and known["data_licence"] == "CC0-1.0"


@pytest.mark.parametrize(
    ("channels", "modality"),
    [
        (("CT",), "CT"),
        (("CTnorm",), "CT"),
        (("CBCT",), "CT"),
        (("MRI",), "MR"),
        (("t2w", "adc"), "MR"),
        (("T1_Gd",), "MR"),
        (("CT", "MR"), "CT, MR"),
        (("PET",), None),
        (("zscore",), None),
        (("product",), None),
    ],
)
def test_modality_is_that_of_the_channels(
    channels: tuple[str, ...], modality: str | None, trained: dict[str, Path]
) -> None:
    network = copy.copy(segmenter(trained["plain"]))
    network._channels = channels
    assert network.modality == modality


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "Dataset901_Ct" / folder.name))


def change(path: Path, edit: Any) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def load(folder: Path, trust: bool = False) -> NnUNetSegmenter:
    return NnUNetSegmenter(folder, CPU, trust)


def change_checkpoint(folder: Path, **changes: Any) -> None:
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({**_read_checkpoint(path), **changes}, path)


def test_the_first_fold_with_a_checkpoint_is_taken_unless_one_is_given(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(trained["plain"], tmp_path)
    (folder / "fold_0").rename(folder / "fold_2")
    (folder / "fold_0").mkdir()
    shutil.copytree(folder / "fold_2", folder / "fold_10")
    shutil.copytree(folder / "fold_2", folder / "fold_all")
    (folder / "fold_10" / "checkpoint_final.pth").rename(folder / "fold_10" / "checkpoint_best.pth")
    assert load(folder).provenance["fold"] == "fold_2"
    best = load(folder / "fold_10").provenance
    assert (best["fold"], best["checkpoint"]) == ("fold_10", "checkpoint_best.pth")
    assert is_nnunet(folder) and is_nnunet(folder / "fold_10") and not is_nnunet(folder / "fold_0")
    with pytest.raises(InputError, match=r"fold_0 holds no checkpoint_final\.pth"):
        load(folder / "fold_0")


@pytest.mark.parametrize("name", ["", "absent", "fold_0", "plans.json", "a\0b"])
def test_other_paths_are_not_trained_folders(name: str, tmp_path: Path) -> None:
    assert not is_nnunet(tmp_path / name)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_a_checkpoint_cannot_run_code_even_if_trusted(trained: dict[str, Path], tmp_path: Path) -> None:
    folder, mark = copied(trained["plain"], tmp_path), tmp_path / "ran"
    change_checkpoint(folder, logging=Hostile(mark))
    for trust in (False, True):
        with pytest.raises(InputError, match="damaged or holds more than weights"):
            load(folder, trust)
    assert not mark.exists()


def configuration(**changes: Any) -> Any:
    return lambda plans: plans["configurations"]["3d_fullres"].update(changes)


def architecture(**changes: Any) -> Any:
    return lambda plans: plans["configurations"]["3d_fullres"]["architecture"].update(changes)


def argument(**changes: Any) -> Any:
    return lambda plans: plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(changes)


FOREIGN: dict[str, tuple[Any, str]] = {
    "a function as the network": (architecture(network_class_name="os.system"), "'os.system'"),
    "a path through a module": (architecture(network_class_name="nnunetv2.paths.os.system"), "paths.os.system"),
    "a class that is no network": (
        architecture(network_class_name="nnunetv2.inference.predict_from_raw_data.nnUNetPredictor"),
        "nnUNetPredictor",
    ),
    "a foreign layer": (argument(conv_op="subprocess.Popen"), "'subprocess.Popen'"),
    "a function of torch": (argument(nonlin="torch.load"), "'torch.load'"),
    "a function as a layer": (argument(norm_op="torch.nn.init.warnings.warn"), "warnings.warn"),
    "a module": (argument(nonlin="torch.nn.functional"), "functional"),
    "another import": (
        lambda plans: (architecture(_kw_requires_import=["n_stages"])(plans), argument(n_stages="os.getcwd")(plans)),
        "'os.getcwd'",
    ),
    "a foreign preprocessor": (configuration(preprocessor_name="shutil"), "'shutil'"),
    "a foreign normalization": (configuration(normalization_schemes=["Type"]), "'Type'"),
    "a foreign resampling": (configuration(resampling_fn_data="deepcopy"), "'deepcopy'"),
    "foreign labels": (lambda plans: plans.update(label_manager="torch"), "'torch'"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_plans_that_name_foreign_code_are_refused(name: str, trained: dict[str, Path], tmp_path: Path) -> None:
    edit, words = FOREIGN[name]
    folder = copied(trained["plain"], tmp_path)
    change(folder / "plans.json", edit)
    with pytest.raises(InputError, match="--trust") as refused:
        load(folder)
    assert words in str(refused.value)


def test_no_other_module_is_imported_because_plans_name_it(trained: dict[str, Path], tmp_path: Path) -> None:
    """Some of nnU-Net's own are programs."""
    folder, module = copied(trained["plain"], tmp_path), "nnunetv2.dataset_conversion.generate_dataset_json"
    sys.modules.pop(module, None)
    change(folder / "plans.json", argument(norm_op=f"{module}.Path"))
    with pytest.raises(InputError, match="--trust"):
        load(folder)
    assert module not in sys.modules


@pytest.mark.parametrize("name", ["MyTrainer", "os"])
def test_an_unknown_trainer_needs_trust(name: str, trained: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(trained["plain"], tmp_path)
    change_checkpoint(folder, trainer_name=name)
    with pytest.raises(InputError, match=f"names '{name}'.*--trust"):
        load(folder)
    assert load(folder, trust=True).provenance["trainer"] == name


def test_a_trainer_of_nnunet_builds_its_own_network(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(trained["plain"], tmp_path)
    change(folder / "plans.json", argument(norm_op="torch.nn.BatchNorm3d"))
    with pytest.raises(InputError, match="do not belong to the network of the plans"):
        load(folder)
    layers = load_state(folder)
    change(folder / "plans.json", argument(norm_op="torch.nn.modules.instancenorm.InstanceNorm3d"))
    change_checkpoint(folder, trainer_name="nnUNetTrainerBN", network_weights=layers)
    found = load(folder).network.modules()
    assert any(isinstance(module, torch.nn.BatchNorm3d) for module in found)


def load_state(folder: Path) -> dict[str, Tensor]:
    """Weights of a network with batch normalization for the plans of a folder."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    described = json.loads((folder / "plans.json").read_text())["configurations"]["3d_fullres"]["architecture"]
    network = get_network_from_plans(
        described["network_class_name"],
        described["arch_kwargs"],
        described["_kw_requires_import"],
        1,
        3,
        deep_supervision=False,
    )
    state: dict[str, Tensor] = network.state_dict()
    return state


def test_plans_of_the_first_nnunet_2_are_understood(trained: dict[str, Path], tmp_path: Path) -> None:
    """They hold the network's sizes instead of its class and arguments."""

    def old(plans: dict[str, Any]) -> None:
        part = plans["configurations"]["3d_fullres"]
        arguments = part.pop("architecture")["arch_kwargs"]
        part.update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=4,
            unet_max_num_features=8,
            n_conv_per_stage_encoder=arguments["n_conv_per_stage"],
            n_conv_per_stage_decoder=arguments["n_conv_per_stage_decoder"],
            num_pool_per_axis=[2, 3, 3],
            pool_op_kernel_sizes=arguments["strides"],
            conv_kernel_sizes=arguments["kernel_sizes"],
        )

    folder = copied(trained["plain"], tmp_path)
    change(folder / "plans.json", old)
    patches = torch.rand(1, 1, 16, 16, 32)
    assert torch.equal(load(folder).logits(patches), segmenter(trained["plain"]).logits(patches))


def drop(key: str) -> Any:
    return lambda content: content.pop(key)


UNUSABLE: dict[str, tuple[str, Any, str]] = {
    "a cascade": ("plans.json", configuration(previous_stage="3d_lowres"), "second stage of a cascade"),
    "photographs": ("plans.json", lambda p: p.update(image_reader_writer="NaturalImage2DIO"), "only 3D volumes"),
    "plans without configurations": ("plans.json", drop("configurations"), "does not build"),
    "plans without a patch": ("plans.json", lambda p: p["configurations"]["3d_fullres"].pop("patch_size"), "does not"),
    "no labels": ("dataset.json", drop("labels"), "does not build"),
    "more labels": ("dataset.json", lambda d: d["labels"].update(kidney=3), "do not belong to the network"),
    "more channels": ("dataset.json", lambda d: d["channel_names"].update({"1": "PET"}), "do not belong"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_folders_are_refused_in_a_sentence(name: str, trained: dict[str, Path], tmp_path: Path) -> None:
    file, edit, words = UNUSABLE[name]
    folder = copied(trained["plain"], tmp_path)
    change(folder / file, edit)
    with pytest.raises(InputError, match=words) as refused:
        load(folder)
    assert str(folder) in str(refused.value)


def test_unreadable_files_are_refused_in_a_sentence(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(trained["plain"], tmp_path)
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    (folder / "plans.json").write_text("[]")
    with pytest.raises(InputError, match=r"plans.json of the trained folder holds no mapping"):
        load(folder)
    (folder / "plans.json").write_text("{")
    with pytest.raises(InputError, match=r"plans.json of the trained folder cannot be read"):
        load(folder)
    shutil.copy(trained["plain"] / "plans.json", folder)
    checkpoint.write_bytes(checkpoint.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"The checkpoint .* (cannot be read|is damaged)"):
        load(folder)
    torch.save({"state_dict": {}}, checkpoint)
    with pytest.raises(InputError, match=r"was not saved by nnU-Net's trainer .'network_weights' is missing"):
        load(folder)
    shutil.rmtree(folder / "fold_0")
    with pytest.raises(InputError, match="has no trained fold"):
        load(folder)


def test_other_than_the_channels_of_the_network_are_refused(trained: dict[str, Path]) -> None:
    scan = Scan("regions", (30, 26, 16), (1.5, 1.5, 2.5))
    with pytest.raises(InputError, match=r"takes 2 images at once \(T1, FLAIR\), and 1 came"):
        segmenter(trained["regions"]).prepare(scan.channel(0))
    with pytest.raises(InputError, match="takes 1 image at once"):
        segmenter(trained["plain"]).prepare(joined(scan.channels(2)))


def test_nothing_is_printed(trained: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    load(trained["plain"]).prepare(Scan("plain", (30, 26, 16), (1.5, 1.5, 2.0)).channel(0))
    assert capfd.readouterr().out == ""
