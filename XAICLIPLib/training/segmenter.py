"""Train the shipped abdominal segmenter and write it as a MONAI bundle.

``python -m XAICLIPLib.training.segmenter --data ../shared/data --work /tmp/segmenter --bundle FOLDER``

A 3D U-Net that computes at 6 mm and segments at 3 mm: a strided convolution joins 2 x 2 x 2 voxels, and a sub-pixel
convolution splits them again, so that no costly layer runs on the full grid. It trains on two CPU cores within an hour.

The script resumes from ``WORK/checkpoint.pt``; every step draws from a generator seeded with
(seed, step), so that a resumed run sees the same patches as an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import sliding_window_inference
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from XAICLIPLib.resources import resource_path
from XAICLIPLib.training import data

PATCH = (96, 96, 48)
WINDOW, OVERLAP = (80, 80, 64), 0.25
"""Sliding window with the best mean Dice on the validation subjects, among six of about the same cost."""

WIDTH = 32
CLASSES = len(data.ORGANS)
CONFIGURATION: dict[str, Any] = {
    "imports": ["$import torch"],
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "stem": {
        "_target_": "torch.nn.Conv3d",
        "in_channels": 1,
        "out_channels": WIDTH,
        "kernel_size": 4,
        "stride": 2,
        "padding": 1,
    },
    "unet": {
        "_target_": "monai.networks.nets.UNet",
        "spatial_dims": 3,
        "in_channels": WIDTH,
        "out_channels": WIDTH,
        "channels": [32, 64, 128, 192],
        "strides": [2, 2, 2],
        "num_res_units": 2,
        "norm": "batch",
    },
    "classifier": {
        "_target_": "torch.nn.Conv3d",
        "in_channels": WIDTH,
        "out_channels": CLASSES * 8,
        "kernel_size": 1,
    },
    "head": {
        "_target_": "monai.networks.blocks.SubpixelUpsample",
        "spatial_dims": 3,
        "in_channels": WIDTH,
        "out_channels": CLASSES,
        "scale_factor": 2,
        "conv_block": "@classifier",
        "apply_pad_pool": False,
    },
    "network_def": "$torch.nn.Sequential(@stem, torch.nn.PReLU(), @unet, @head)",
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "monai.transforms.Compose",
        "transforms": [
            {"_target_": "monai.transforms.LoadImaged", "keys": "image"},
            {"_target_": "monai.transforms.EnsureChannelFirstd", "keys": "image"},
            {"_target_": "monai.transforms.Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
            {
                "_target_": "monai.transforms.Spacingd",
                "keys": "image",
                "pixdim": [data.SPACING_MM] * 3,
                "mode": "bilinear",
                "padding_mode": "border",
            },
            {
                "_target_": "monai.transforms.ScaleIntensityRanged",
                "keys": "image",
                "a_min": data.WINDOW_HU[0],
                "a_max": data.WINDOW_HU[1],
                "b_min": 0.0,
                "b_max": 1.0,
                "clip": True,
            },
        ],
    },
    "inferer": {
        "_target_": "monai.inferers.SlidingWindowInferer",
        "roi_size": list(WINDOW),
        "sw_batch_size": 4,
        "overlap": OVERLAP,
        "mode": "gaussian",
    },
    "postprocessing": {
        "_target_": "monai.transforms.Compose",
        "transforms": [
            {"_target_": "monai.transforms.Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "monai.transforms.Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "monai.transforms.AsDiscreted", "keys": "pred", "argmax": True},
        ],
    },
}
"""The bundle's ``inference.json``; the network is trained as it is written there."""

PHANTOMS_FROM = 1000
"""Step from which torso phantoms are mixed in: the network learns on patients first."""


def new_network() -> torch.nn.Module:
    """The network of the configuration, with random weights."""
    network: torch.nn.Module = ConfigParser(CONFIGURATION).get_parsed_content("network_def")
    return network


def draw_batch(
    subjects: list[data.Subject], weights: torch.Tensor, size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of augmented patches (N, 1, X, Y, Z) and labels (N, 1, X, Y, Z), fixed by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = [], []
    for index in torch.multinomial(weights, size, replacement=True, generator=generator).tolist():
        image, label = data.random_patch(subjects[index], PATCH, generator)
        images.append(data.vary_intensity(image, label, generator))
        labels.append(label[None])
    return torch.stack(images), torch.stack(labels)


def sampling_weights(subjects: list[data.Subject]) -> torch.Tensor:
    """Sampling probability of each subject: each kind has a fixed share, however many subjects there are of it."""
    share = {"abdomen": 0.84, "phantom": 0.10, "head_neck": 0.06}
    count = {kind: sum(s.kind == kind for s in subjects) for kind in share}
    return torch.tensor([share[s.kind] / count[s.kind] for s in subjects])


def dice_and_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, power: float) -> torch.Tensor:
    """Weighted cross-entropy plus soft Dice loss over the classes in the batch.

    In the cross-entropy, a class of n voxels has the weight n to the power of minus ``power``: otherwise small
    organs get hardly any gradient at first. A patch has few of the organs: the usual Dice loss would add a constant for
    each of the others.
    """
    log_p = functional.log_softmax(logits, 1)
    log_true = log_p.gather(1, labels[:, None]).flatten()
    flat, classes = labels.flatten(), logits.shape[1]
    count = torch.bincount(flat, minlength=classes)
    weight = (count.clamp(min=1).float() ** -power)[flat]
    shared = torch.zeros(classes).index_add(0, flat, log_true.exp())
    dice = 2 * shared / (log_p.exp().sum((0, 2, 3, 4)) + count)
    return 1 - (weight * log_true).sum() / weight.sum() - dice[count > 0].mean()


@torch.inference_mode()
def predict(network: torch.nn.Module, image: torch.Tensor, overlap: float = OVERLAP) -> torch.Tensor:
    """Label map (X, Y, Z) of an image (X, Y, Z) in [0, 1]."""
    logits = sliding_window_inference(image[None, None], WINDOW, 2, network, overlap, mode="gaussian")
    return torch.as_tensor(logits)[0].argmax(0)


def dice_table(network: torch.nn.Module, subjects: list[data.Subject]) -> dict[str, float]:
    """Mean Dice by organ over the subjects that have it."""
    dice_by_organ: dict[str, list[float]] = {}
    for subject in subjects:
        predicted = predict(network, subject.image)
        for value, name in enumerate(data.ORGANS):
            truth = subject.label == value
            if value and truth.any():
                mask = predicted == value
                dice_by_organ.setdefault(name, []).append(float(2 * (mask & truth).sum() / (mask.sum() + truth.sum())))
    return {name: sum(values) / len(values) for name, values in dice_by_organ.items()}


def train(root: Path, work: Path, steps: int, batch: int, seed: int, rate: float) -> torch.nn.Module:
    """Train or resume; returns the averaged network in evaluation mode."""
    subjects = data.abdomen_subjects(root, data.TRAIN) + data.head_neck_subjects(root, 8)
    weights = sampling_weights(subjects)
    validation = data.abdomen_subjects(root, data.VALIDATION)

    torch.manual_seed(seed)
    network = new_network()
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.995), use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1, s / steps))) / 2)
    )
    begin, checkpoint = 0, work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        begin = state["step"]
    clock, total = time.time(), 0.0
    for step in range(begin, steps):
        if step >= PHANTOMS_FROM and subjects[-1].kind != "phantom":
            subjects += data.phantom_subjects()
            weights = sampling_weights(subjects)
        images, labels = draw_batch(subjects, weights, batch, seed * 1_000_003 + step)
        network.train()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        loss = dice_and_cross_entropy(logits.float(), labels[:, 0], power=0.5 - 0.3 * step / steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        average.update_parameters(network)
        total += float(loss.detach())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{steps} loss {total / 50:.4f} {time.time() - clock:.0f} s", flush=True)
            total = 0.0
        if (step + 1) % 100 == 0 or step + 1 == steps:
            parts: dict[str, Any] = {
                "network": network,
                "average": average,
                "optimizer": optimizer,
                "schedule": schedule,
            }
            state = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            table = dice_table(average.module.eval(), validation)
            print(step + 1, json.dumps({k: round(v, 3) for k, v in table.items()}), flush=True)
    return average.module.eval()


def metadata() -> dict[str, Any]:
    """The bundle's ``metadata.json``."""
    patch = {"is_patch_data": True, "spatial_shape": list(PATCH), "dtype": "float32", "value_range": [0, 1]}
    return {
        "name": "abdomen-ct",
        "version": "0.1.0",
        "changelog": {"0.1.0": "first release"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {},
        "task": "Segmentation of 13 abdominal organs in CT",
        "description": "A small 3D U-Net that thinks at 6 mm and decides at 3 mm.",
        "authors": "XAICLIP developers",
        "copyright": "Copyright (c) XAICLIP developers",
        "license": "Apache-2.0",
        "data_source": "BTCV abdominal CTs (18 subjects), OpenKBP head-and-neck CTs (8 subjects), synthetic torsos",
        "intended_use": "Demonstration and tests of XAI-CLIP. Not for diagnosis.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    "channel_def": {"0": "image"},
                    **patch,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": CLASSES,
                    "channel_def": {str(label): name for label, name in enumerate(data.ORGANS)},
                    **patch,
                }
            },
        },
    }


def write_bundle(network: torch.nn.Module, folder: Path) -> None:
    """Write configuration and weights (half precision) as a MONAI bundle; its model card lies in ``docs``."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, content in (("metadata", metadata()), ("inference", CONFIGURATION)):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    state = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    torch.save(state, folder / "models" / "model.pt")


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--bundle", type=Path, default=resource_path("models", "abdomen-ct"), help="where to write it")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    network = train(arguments.data, arguments.work, arguments.steps, arguments.batch, arguments.seed, arguments.rate)
    write_bundle(network, arguments.bundle)


if __name__ == "__main__":
    main()
