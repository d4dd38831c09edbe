"""Makes trained folders with nnU-Net's own planner and trainer: run as a program, ``nnunet_training.py FOLDER``.

A process of its own, because nnU-Net reads where its folders are from the environment once, when it is imported.
The weights are random: what is tested is how they are used. ``FOLDER/results`` then holds one trained folder for each
of `VARIANTS`.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import SimpleITK as sitk

CT = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "spleen": 2},
    "licence": "CC0-1.0",
}
MR = {
    "channel_names": {"0": "T1", "1": "FLAIR"},
    "labels": {"background": 0, "whole tumour": [1, 2], "core": [2]},
    "regions_class_order": [1, 2],
}

VARIANTS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # dataset, configuration, changes of the plans, changes of the configuration
    "plain": ("Dataset901_Ct", "3d_fullres", {}, {}),
    "transposed": (
        "Dataset901_Ct",
        "3d_fullres",
        {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]},
        {"spacing": [1.4, 2.6, 1.1], "patch_size": [24, 16, 32]},
    ),
    "slices": ("Dataset901_Ct", "2d", {}, {"patch_size": [16, 24]}),
    "canonical": ("Dataset901_Ct", "3d_fullres", {"image_reader_writer": "NibabelIOWithReorient"}, {}),
    "regions": ("Dataset902_Mr", "3d_fullres", {}, {}),
    "coordinates": (
        "Dataset903_Coordinates",
        "3d_fullres",
        {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]},
        {"normalization_schemes": ["NoNormalization"] * 3, "use_mask_for_norm": [False] * 3},
    ),
}


def raw_dataset(folder: Path, description: dict[str, Any], seed: int) -> None:
    """Three small cases in nnU-Net's raw format: a body with two organs in it, zero around."""
    generator = np.random.default_rng(seed)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in range(3):
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 36, 40)), indexing="ij")
        body = (x**2 + y**2) < 0.8
        labels = np.zeros(body.shape, np.uint8)
        labels[((x - 0.3) ** 2 + y**2 + z**2) < 0.2] = 1
        labels[((x + 0.3) ** 2 + y**2 + z**2) < 0.1] = 2
        for channel in range(len(description["channel_names"])):
            values = body * (100 + 60 * labels + generator.normal(0, 10, body.shape))
            write(values.astype(np.float32), folder / "imagesTr" / f"case{case}_{channel:04d}.nii.gz")
        write(labels, folder / "labelsTr" / f"case{case}.nii.gz")
    content = {**description, "numTraining": 3, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def write(values: np.ndarray, path: Path) -> None:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.5, 1.5, 2.5))
    sitk.WriteImage(image, str(path))


def plan(number: int) -> dict[str, Any]:
    """The plans of nnU-Net's planner, for networks of few channels."""
    from nnunetv2 import paths
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
        ResEncUNetPlanner,
    )

    # Threads instead of processes, each of which would import all of nnU-Net again.
    multiprocessing.get_context = lambda method=None: SimpleNamespace(Pool=ThreadPool)
    extractor = DatasetFingerprintExtractor(number, 1)
    extractor.num_foreground_voxels_for_intensitystats = 3000
    extractor.run()
    planner = (ResEncUNetPlanner if number == 902 else ExperimentPlanner)(number)
    if os.environ.get("XAICLIP_NNUNET_WIDTH") != "default":  # as for the benchmark
        planner.UNet_base_num_features = 4
        planner.UNet_max_features_2d = planner.UNet_max_features_3d = 8
        planner.UNet_blocks_per_stage_encoder = (1,) * 14
    planner.plan_experiment()
    saved = Path(paths.nnUNet_preprocessed) / planner.dataset_name / f"{planner.plans_identifier}.json"
    plans: dict[str, Any] = json.loads(saved.read_text())
    return plans


def train(plans: dict[str, Any], description: dict[str, Any], configuration: str) -> None:
    """What nnU-Net's trainer saves after an epoch, less the epoch."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(3)
    trainer = nnUNetTrainer(
        {**copy.deepcopy(plans), "continue_training": False}, configuration, 0, description, torch.device("cpu")
    )
    (Path(trainer.preprocessed_dataset_folder)).mkdir(parents=True, exist_ok=True)
    (Path(trainer.preprocessed_dataset_folder) / "case0.b2nd").touch()  # by which it finds out how data are stored
    trainer.initialize()
    with torch.no_grad():  # kernels that mostly blur, so that label maps have structures of some size, as trained ones
        for weight in trainer.network.parameters():
            if weight.ndim > 3 and weight[0, 0].numel() > 1:
                dims = tuple(range(2, weight.ndim))
                weight.mul_(0.1).add_(weight.abs().mean(dims, keepdim=True))
    trainer.optimizer.zero_grad()
    output = trainer.network(
        torch.rand(2, len(description["channel_names"]), *trainer.configuration_manager.patch_size)
    )
    sum(o.square().mean() for o in output).backward()
    trainer.optimizer.step()  # so that there is an optimizer's state
    trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)
    trainer.logger.log("train_losses", np.float32(0.5), 0)
    trainer._best_ema = np.float64(0.5)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    folder = Path(trainer.output_folder_base)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(description))


def main(folder: Path) -> None:
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    descriptions = {"Dataset901_Ct": CT, "Dataset902_Mr": MR}
    planned = {}
    for seed, (name, description) in enumerate(descriptions.items()):
        raw_dataset(folder / "raw" / name, description, seed)
        planned[name] = plan(int(name[7:10]))
    name = "Dataset903_Coordinates"
    descriptions[name] = {**CT, "channel_names": {"0": "noNorm", "1": "noNorm", "2": "noNorm"}}
    planned[name] = {**copy.deepcopy(planned["Dataset901_Ct"]), "dataset_name": name}
    intensities = planned[name]["foreground_intensity_properties_per_channel"]
    planned[name]["foreground_intensity_properties_per_channel"] = {str(c): intensities["0"] for c in range(3)}
    for variant, (name, configuration, plans_changes, changes) in VARIANTS.items():
        plans = copy.deepcopy(planned[name])
        plans.update(plans_changes, plans_name=f"nnUNetPlans_{variant}")
        content = {**descriptions[name], "numTraining": 3, "file_ending": ".nii.gz"}
        half = {"patch_size": [16, 16, 32]} if configuration == "3d_fullres" else {}
        plans["configurations"][configuration].update({**half, **changes})
        train(plans, content, configuration)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
