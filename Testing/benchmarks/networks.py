"""Every kind of network, from its real format on disk: it loads, predicts, explains, and scores exactly.

Real weights where they can be had (the shipped bundle, brainchop's MeshNet, deepbet); elsewhere the architecture at its
full configuration with random weights, saved by the tools of its makers. Random weights draw nonsense, which does not
matter here: what is shown is that each kind goes through every method, and that a perturbation's incremental score is
that of full inference on the perturbed volume. ``--only WORD,WORD`` runs the kinds whose name holds one of the words
(TotalSegmentator needs the folder that nnU-Net's row makes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import monai.networks.nets as nets
import numpy as np
import SimpleITK as sitk
import torch
import yaml
from setting import CPU, arguments
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.phantom import torso_phantom
from XAICLIPLib.models import catalogue
from XAICLIPLib.pipeline import explain
from XAICLIPLib.scoring.baselines import baseline_for, with_held
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import target_score
from XAICLIPLib.scoring.target import make_target
from XAICLIPLib.segmentation.networks.described import from_object
from XAICLIPLib.segmentation.prediction import network_near, predict
from XAICLIPLib.segmentation.sliding_window import predict_logits

METHODS: dict[str, dict[str, Any]] = {
    "occlusion": {"window_mm": 32.0, "stride_mm": 32.0},
    "rise": {"cell_mm": 40.0, "samples": 4, "wanted_error": 0.0},
    "lime": {"size_mm": 40.0, "samples": 4},
    "structures": {},
    "integrated-gradients": {"steps": 2},
    "seg-grad-cam": {},
}
HALF_MM = 25.0
"""Of the edge of the region: a cube in the middle of the volume."""


@dataclass
class Kind:
    """A network to show.

    Attributes
    ----------
    weights
        ``real`` or ``random``.
    model
        Name, path or object.
    images
        What it takes.
    target
        The structure; None for the one of which it draws most.
    leave_out
        Methods that this machine has no memory or time for.
    """

    name: str
    weights: str
    model: Any
    images: list[sitk.Image]
    target: str | None = None
    leave_out: tuple[str, ...] = ()


def cube(image: sitk.Image, half_mm: float = HALF_MM) -> tuple[float, ...]:
    """Bounds of a cube in the middle of a volume, in RAS mm."""
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    middle *= (-1, -1, 1)
    return tuple(float(v) for m in middle for v in (m - half_mm, m + half_mm))


def difference(segmenter: Any, image: sitk.Image, channel: int, region: sitk.Image) -> tuple[float, int, int]:
    """Largest difference of incremental and full scores over three perturbations, patches run and in full."""
    prediction = predict(segmenter, image, CPU)
    prepared, held = prediction.prepared, prediction.prepared.held
    target = make_target("target", (channel,), region, prediction, box=True)
    probed = prepared.mask_from(region)
    near = torch.nonzero(probed)
    low, high = near.amin(0).tolist(), (near.amax(0) + 1).tolist()
    middle = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
    boxes = [
        tuple(slice(a, max(a + 1, m)) for a, m in zip(low, middle, strict=True)),
        tuple(slice(m, max(m + 1, b)) for m, b in zip(middle, high, strict=True)),
        tuple(slice(a, b) for a, b in zip(low, high, strict=True)),
    ]
    baseline, _ = baseline_for("air", prediction.volume[: len(prepared.tensor)], probed, prepared.spacing_mm)
    replaced = with_held(baseline, None if held is None else prediction.volume[len(prepared.tensor) :])
    assert isinstance(replaced, Tensor)
    forward, tiling = network_near(segmenter, prediction.tiling, target.voxels)
    scorer = Scorer(forward, prediction.volume, replaced, tiling, target, segmenter.activation)
    worst = 0.0
    for box in boxes:
        ((_, lost),) = [pair for batch in scorer.lost([Perturbation(box)]) for pair in batch]
        perturbed = prediction.volume.clone()
        perturbed[(slice(None), *box)] = replaced[(slice(None), *box)]
        with torch.inference_mode():
            logits = predict_logits(segmenter.logits, perturbed, prediction.tiling)
        full = target_score(
            "soft dice", logits[:, target.voxels], target.reference[target.voxels], channel, segmenter.activation
        )
        worst = max(worst, abs(scorer.full_score - lost - float(full)))
    return worst, scorer.forwards, len(boxes) * len(prediction.tiling.patches)


def show(kind: Kind) -> str:
    """A row of the table."""
    begun = time.perf_counter()
    by_name = isinstance(kind.model, (str, Path))
    loaded = catalogue.load_segmenter(str(kind.model), CPU) if by_name else from_object(kind.model)
    loading = time.perf_counter() - begun
    first = kind.images[0]
    region = imaging.box_mask(first, cube(first))
    segmenter = loaded.prompted("liver", region) if hasattr(loaded, "prompted") else loaded
    stacked = (
        kind.images[0] if len(kind.images) == 1 else sitk.Compose([sitk.Cast(i, sitk.sitkFloat32) for i in kind.images])
    )
    begun = time.perf_counter()
    prediction = predict(segmenter, stacked, CPU)
    predicting = time.perf_counter() - begun
    values = prediction.decision[prediction.prepared.mask_from(region)]
    shift = segmenter.activation == "sigmoid"
    counts = {
        c: int(torch.isin(values, torch.tensor(prediction.values_of([c]))).sum())
        for c in segmenter.labels
        if c or shift
    }
    channel = max(counts, key=lambda c: counts[c])
    if kind.target is not None:
        channel = next(c for c, name in segmenter.labels.items() if name == kind.target)
    shape = "×".join(map(str, prediction.volume.shape[1:]))
    del prediction
    worst, run, full = difference(segmenter, stacked, channel, region)
    told = []
    for method, parameters in METHODS.items():
        if method in kind.leave_out:
            told.append("–")
            continue
        try:
            found = explain(
                kind.images,
                segmenter.labels[channel],
                model=loaded,
                region=cube(first),  # type: ignore[arg-type]
                target=cube(first),  # type: ignore[arg-type]
                method=method,
                device="cpu",
                **parameters,
            )
            saliency = sitk.GetArrayViewFromImage(found.saliency)
            assert np.isfinite(saliency).all() and saliency.any(), "an empty map"
            told.append(str(found.measurements["perturbations"]))
        except InputError as error:
            told.append(f"refused: {error}"[:60] + "…")
    outputs = len(segmenter.labels)
    about = [kind.name, kind.weights, f"{loading:.1f}", f"{shape}, {outputs}", f"{predicting:.1f}"]
    return f"| {' | '.join([*about, f'{run} of {full}', f'{worst:.0e}', *told])} |"


# --- making them -------------------------------------------------------------------------------------------------


def described(folder: Path, name: str, arguments: dict[str, Any], classes: int = 14, **more: Any) -> Path:
    """A MONAI network with its checkpoint and description."""
    torch.manual_seed(0)
    network = getattr(nets, name)(**arguments)
    folder.mkdir(parents=True)
    torch.save({"state_dict": network.state_dict()}, folder / "net.pt")
    content = {
        "network": {"name": name, "arguments": arguments},
        "weights": "net.pt",
        "labels": ["background", *(f"structure {n}" for n in range(1, classes))],
        "modality": "CT",
        "spacing_mm": 1.5,
        "intensity": {"range": [-175, 250]},
        "window": {"size": [96, 96, 96]},
        **more,
    }
    (folder / "net.yaml").write_text(yaml.safe_dump(content))
    return folder / "net.yaml"


def torchscript(folder: Path) -> Path:
    """A traced SegResNet with its description."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    network = nets.SegResNet(init_filters=16, in_channels=1, out_channels=14).eval()
    torch.jit.trace(network, torch.zeros(1, 1, 96, 96, 96)).save(str(folder / "net.ts"))
    content = {
        "labels": ["background", *(f"structure {n}" for n in range(1, 14))],
        "torchscript": "net.ts",
        "modality": "CT",
        "spacing_mm": 1.5,
        "intensity": {"range": [-175, 250]},
        "window": {"size": [96, 96, 96]},
    }
    (folder / "net.yaml").write_text(yaml.safe_dump(content))
    return folder / "net.ts"


def bundle(
    folder: Path, network: dict[str, Any], steps: list[dict[str, Any]], roi: list[int], labels: list[str], **more: Any
) -> Path:
    """A bundle laid out as those of MONAI's Model Zoo."""
    torch.manual_seed(0)
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    inputs = more.pop("inputs", ["image"])
    metadata = {
        "name": folder.name,
        "version": "0.1",
        "network_data_format": {
            "inputs": {"image": {"num_channels": len(inputs), "channel_def": dict(enumerate(inputs))}},
            "outputs": {"pred": {"channel_def": dict(enumerate(labels))}},
        },
    }
    reading = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
    sigmoid, further, built = more.pop("sigmoid", False), more.pop("further", {}), more.pop("built", None)
    content = {
        **further,
        "imports": ["$import glob", "$import os"],
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [*reading, *steps]},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": roi, "sw_batch_size": 1, **more},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "sigmoid" if sigmoid else "softmax": True}],
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(content))
    given = {key: value for key, value in network.items() if key not in ("_target_", "img_size")}
    made = built or getattr(nets, network["_target_"])(**given)
    torch.save(made.state_dict(), folder / "models" / "model.pt")
    return folder


def multi_organ(folder: Path) -> Path:
    """DiNTS, whose shape is read from a second file; every edge of its 12 blocks is there, a searched one has fewer."""
    torch.manual_seed(0)
    blocks, depths = 12, 4
    operations = np.random.default_rng(2).integers(0, 2, (blocks, 3 * depths - 2))
    arrays = {
        "node_a": np.ones((blocks + 1, depths)),
        "arch_code_a": np.ones(operations.shape),
        "arch_code_c": operations,
    }
    space = {"channel_mul": 0.5, "num_blocks": blocks, "num_depths": depths, "use_downsample": True}
    codes = [arrays["arch_code_a"], arrays["arch_code_c"]]
    network = {"in_channels": 1, "num_classes": 8, "use_downsample": True}
    built = nets.DiNTS(
        nets.TopologyInstance(**space, arch_code=codes, device="cpu"),
        node_a=torch.from_numpy(arrays["node_a"]),
        **network,
    )
    told = {"dints_space": "@dints_space", "node_a": "$torch.from_numpy(@arch_ckpt['node_a'])"}
    further = {
        "arch_ckpt": "$torch.load(@bundle_root + '/models/code.pt', map_location=torch.device('cuda'))",
        "dints_space": {
            "_target_": "monai.networks.nets.TopologyInstance",
            **space,
            "arch_code": ["$@arch_ckpt['arch_code_a']", "$@arch_ckpt['arch_code_c']"],
            "device": "$torch.device('cuda')",
        },
    }
    made = bundle(
        folder,
        {"_target_": "DiNTS", **network, **told},
        [*resampled([2.0, 2.0, 2.0]), scaled(-500, 500)],
        [96, 96, 96],
        ["background", *(f"structure {n}" for n in range(1, 8))],
        overlap=0.625,
        further=further,
        built=built,
    )
    torch.save(arrays, folder / "models" / "code.pt")
    return made


def resampled(pixdim: list[float]) -> list[dict[str, Any]]:
    """To RAS and a spacing."""
    return [
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": pixdim, "mode": "bilinear"},
    ]


def scaled(low: float, high: float) -> dict[str, Any]:
    """A window of HU."""
    ends = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    return {"_target_": "ScaleIntensityRanged", "keys": "image", **ends}


def trained_by_nnunet(folder: Path) -> Path:
    """A folder that nnU-Net's own planner and trainer made, at their default widths."""
    program = Path(__file__).resolve().parents[1] / "Python" / "nnunet_training.py"
    environment = {**os.environ, "XAICLIP_NNUNET_WIDTH": "default"}
    subprocess.run([sys.executable, str(program), str(folder)], check=True, capture_output=True, env=environment)
    return next((folder / "results").glob("Dataset901*/*__nnUNetPlans_plain__*"))


def sam(folder: Path) -> Path:
    """A ViT-B as `transformers` saves it."""
    from XAICLIPLib.system.torchvision_operators import import_without_operators

    import_without_operators("transformers.models.sam.modeling_sam")
    import_without_operators("transformers.models.sam.image_processing_sam")
    import transformers

    torch.manual_seed(0)
    network = transformers.SamModel(transformers.SamConfig())
    for weight in network.parameters():
        if weight.ndim > 1:  # as it begins, no change of the image reaches the mask
            torch.nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
    network.save_pretrained(folder)
    transformers.SamImageProcessor().save_pretrained(folder)
    return folder


class Bright:
    """Calls soft tissue what is brighter than fat: any object in Python will do."""

    description: ClassVar[dict[str, Any]] = {
        "labels": ["background", "soft tissue"],
        "modality": "CT",
        "spacing_mm": 3.0,
        "intensity": {"range": [-200, 200]},
        "window": {"size": [32, 32, 32]},
    }

    def predict(self, batch: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) to (N, 2, X, Y, Z)."""
        return torch.cat([torch.zeros_like(batch), 20 * (torch.nn.functional.avg_pool3d(batch, 3, 1, 1) - 0.5)], 1)


def kinds(work: Path, data: Path) -> Iterator[tuple[str, Callable[[], Kind]]]:
    """All of them, made when they are shown."""
    real = data / "totalseg" / "example_ct.nii.gz"
    ct = imaging.read_volume(real) if real.is_file() else torso_phantom(0).image
    size = [int(min(n, round(100 / s))) for n, s in zip(ct.GetSize(), ct.GetSpacing(), strict=True)]
    start = [(n - s) // 2 for n, s in zip(ct.GetSize(), size, strict=True)]
    crop = sitk.RegionOfInterest(ct, size, start)
    organs = ["background", *(f"structure {n}" for n in range(1, 14))]
    large = ("integrated-gradients", "seg-grad-cam")

    def monai(name: str, leave_out: tuple[str, ...] = (), **given: Any) -> tuple[str, Callable[[], Kind]]:
        title = f"MONAI {name} + checkpoint"
        return title, lambda: Kind(title, "random", described(work / name, name, given), [crop], leave_out=leave_out)

    def zoo(name: str, make: Callable[[Path], Path], images: list[sitk.Image], leave_out: tuple[str, ...] = ()) -> Any:
        return f"bundle {name}", lambda: Kind(f"bundle {name}", "random", make(work / name), images, None, leave_out)

    yield "bundle abdomen-ct", lambda: Kind("bundle abdomen-ct", "real", "abdomen-ct", [crop])
    segresnet = {"_target_": "SegResNet", "spatial_dims": 3, "in_channels": 1, "blocks_down": [1, 2, 2, 4]}
    segresnet |= {"blocks_up": [1, 1, 1], "dropout_prob": 0.2}
    z_score = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True}
    yield zoo(
        "wholeBody_ct_segmentation",
        lambda folder: bundle(
            folder,
            {**segresnet, "out_channels": 105, "init_filters": 32},
            [
                *resampled([1.5, 1.5, 1.5]),
                z_score,
                {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
            ],
            [96, 96, 96],
            ["background", *(f"structure {n}" for n in range(1, 105))],
            padding_mode="replicate",
            mode="gaussian",
            overlap=0.25,
        ),
        [crop],
        ("structures",),  # it draws all of its 105
    )
    swin = {"_target_": "SwinUNETR", "spatial_dims": 3, "img_size": 96, "in_channels": 1, "out_channels": 14}
    yield zoo(
        "swin_unetr_btcv_segmentation",
        lambda folder: bundle(
            folder,
            {**swin, "feature_size": 48},
            [*resampled([1.5, 1.5, 2.0]), scaled(-175, 250)],
            [96, 96, 96],
            organs,
            overlap=0.5,
        ),
        [crop],
        large,
    )
    unet = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "num_res_units": 2}
    unet |= {"channels": [16, 32, 64, 128, 256], "strides": [2, 2, 2, 2], "norm": "batch"}
    yield zoo(
        "spleen_ct_segmentation",
        lambda folder: bundle(
            folder, unet, [*resampled([1.5, 1.5, 2.0]), scaled(-57, 164)], [96, 96, 96], ["background", "spleen"]
        ),
        [crop],
    )
    yield zoo("multi_organ_segmentation", multi_organ, [crop])
    small = sitk.Shrink(crop, [2, 2, 2])
    four = [sitk.Cast(small + 1100 + 10 * n, sitk.sitkFloat32) for n in range(4)]
    yield zoo(
        "brats_mri_segmentation",
        lambda folder: bundle(
            folder,
            {**segresnet, "in_channels": 4, "out_channels": 3, "init_filters": 16},
            [{**z_score, "channel_wise": True}],
            [240, 240, 160],
            ["tumor core", "whole tumor", "enhancing tumor"],
            inputs=["T1c", "T1", "T2", "FLAIR"],
            sigmoid=True,
            overlap=0.5,
        ),
        four,
        (*large, "lime", "rise"),
    )
    yield "TorchScript", lambda: Kind("TorchScript", "random", torchscript(work / "ts"), [crop])
    yield monai("SegResNet", init_filters=16, in_channels=1, out_channels=14)
    yield monai("UNet", **{k: v for k, v in unet.items() if k != "_target_"} | {"out_channels": 14})
    dynunet = {"kernel_size": [3] * 5, "strides": [1, 2, 2, 2, 2], "upsample_kernel_size": [2] * 4}
    yield monai("DynUNet", spatial_dims=3, in_channels=1, out_channels=14, **dynunet)
    yield monai("SwinUNETR", in_channels=1, out_channels=14, feature_size=24)
    yield monai("UNETR", in_channels=1, out_channels=14, img_size=[96, 96, 96])
    nnunet = work / "nnunet"
    yield "nnU-Net v2", lambda: Kind("nnU-Net v2", "random", trained_by_nnunet(nnunet), [crop])

    def total() -> Kind:
        trained = next((nnunet / "results").glob("Dataset901*/*__nnUNetPlans_plain__*"))
        place = work / "total" / "Dataset297_TotalSegmentator_total_3mm_1559subj"
        place.mkdir(parents=True)
        trained.rename(place / "nnUNetTrainer_4000epochs_NoMirroring__nnUNetPlans__3d_fullres")
        os.environ["TOTALSEG_WEIGHTS_PATH"] = str(work / "total")
        return Kind("TotalSegmentator", "random", "totalsegmentator:total_fast", [crop])

    yield "TotalSegmentator", total
    thin = sitk.RegionOfInterest(crop, [crop.GetSize()[0], crop.GetSize()[1], 4], [0, 0, crop.GetSize()[2] // 2])
    thin.SetSpacing((*thin.GetSpacing()[:2], 24.0))  # so that the region lies on two slices: one takes half a minute
    yield "SAM ViT-B", lambda: Kind("SAM ViT-B", "random", sam(work / "sam"), [thin], None, large)
    head = data / "brain_mr"
    if head.is_dir():
        t1 = imaging.read_volume(head / "t1_crop.nii.gz")
        mesh = head / "model20chan3cls"
        yield "MeshNet", lambda: Kind("MeshNet of brainchop", "real", mesh, [t1], "white matter", large)
        yield "deepbet", lambda: Kind("deepbet", "real", "deepbet", [t1], "brain", large)
    yield "Python object", lambda: Kind("Python object", "real", Bright(), [crop])


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--only", default="", help="kinds whose name holds one of these, with commas between")
    options = parser.parse_args()
    words = options.only.lower().split(",")
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")  # of packages, for their programmers
    print(f"\n{(__doc__ or '').splitlines()[0]}\n")
    head = [
        "network",
        "weights",
        "loads, s",
        "input, classes",
        "predicts, s",
        "patches of 3 changes",
        "difference to full",
    ]
    print(f"| {' | '.join([*head, *METHODS])} |\n|{' --- |' * (len(head) + len(METHODS))}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        for name, make in kinds(Path(work), options.data):
            if any(word in name.lower() for word in words):
                print(show(make()), flush=True)
    print("\nUnder each method: the perturbations (steps) of its map; – was not tried, for its memory or time here.")


if __name__ == "__main__":
    main()
