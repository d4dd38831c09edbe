"""SAM, slice by slice: against transformers' own processor and model, and through the whole pipeline."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from Testing.Python.test_explanation import BOXES, OBLIQUE, Finder, geometry, mask_of, scan, values
from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.localization.region import guided_region
from XAICLIPLib.pipeline import explain
from XAICLIPLib.scoring.baselines import baseline_for, with_held
from XAICLIPLib.scoring.options import BASELINES, Baseline
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import target_score
from XAICLIPLib.scoring.target import Target
from XAICLIPLib.segmentation.networks import sam
from XAICLIPLib.segmentation.networks.sam import BACKGROUND_LOGIT, BOX_MARGIN_MM, HUB, SamSegmenter, box_corners, is_sam
from XAICLIPLib.segmentation.prediction import predict
from XAICLIPLib.segmentation.segmenter import Promptable
from XAICLIPLib.segmentation.sliding_window import Tiling, predict_logits
from XAICLIPLib.system.torchvision_operators import import_without_operators

pytest.importorskip("transformers.utils", reason="the optional package transformers is not installed")

CPU = torch.device("cpu")
SIDE = 64
VISION = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 64,
    "num_pos_feats": 8,
}
PROMPT = {"hidden_size": 16, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4}
DECODER = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
QUICK: dict[str, dict[str, Any]] = {
    "occlusion": {"window_mm": 18.0, "stride_mm": 18.0},
    "rise": {"cell_mm": 18.0, "samples": 12, "wanted_error": 0.0},
    "lime": {"size_mm": 18.0, "samples": 20},
    "structures": {},
    "integrated-gradients": {"steps": 2},
}


def transformers() -> Any:
    """Its SAM, also beside a torchvision of another build."""
    import_without_operators("transformers.models.sam.modeling_sam")
    import_without_operators("transformers.models.sam.image_processing_sam")
    import transformers

    return transformers


def save_tiny(path: Path) -> Path:
    """A tiny SAM of random weights that depends on its input, as `save_pretrained` writes it."""
    library = transformers()
    torch.manual_seed(0)
    network = library.SamModel(
        library.SamConfig(vision_config=VISION, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER)
    )
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
    network.save_pretrained(path)
    processor(library).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SAM."""
    return save_tiny(tmp_path_factory.mktemp("sam") / "tiny-sam")


def processor(library: Any) -> Any:
    return library.SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})


@pytest.fixture(scope="module")
def tiny(folder: Path) -> SamSegmenter:
    return SamSegmenter(folder, CPU)


def copy_of(folder: Path, path: Path, **changes: Any) -> Path:
    """The folder with entries of its config.json changed."""
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


@contextmanager
def counted(network: SamSegmenter) -> Iterator[list[int]]:
    """The images that the encoder is given meanwhile, one number a call."""
    calls: list[int] = []
    hook = network.network.vision_encoder.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    try:
        yield calls
    finally:
        hook.remove()


def liver(image: sitk.Image) -> sitk.Image:
    return mask_of(image, BOXES[1])


def run(network: Any, image: sitk.Image | None = None, **options: Any) -> Explanation:
    given: dict[str, Any] = {"model": network, "localizer": Finder(), "device": "cpu", **QUICK["occlusion"]}
    if "method" in options:
        given = {k: v for k, v in given.items() if k not in QUICK["occlusion"]} | QUICK.get(options["method"], {})
    return explain(scan() if image is None else image, "liver", **{**given, **options})


# --- what it draws


@pytest.mark.parametrize("shape", [(20, 22), (50, 31), (90, 130), (64, 64)], ids=str)
def test_drawing_is_that_of_transformers(folder: Path, tiny: SamSegmenter, shape: tuple[int, int]) -> None:
    """Images that are enlarged, reduced, and neither; of both lying and standing formats."""
    library = transformers()
    grey = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[3.0, 4.0, 15.0, 12.0], [5.0, 0.0, shape[1] - 1.0, 9.0]])
    found = tiny.segment_boxes(grey, boxes)

    official, own = library.SamModel.from_pretrained(folder).eval(), library.SamProcessor(processor(library))
    images = [(255 * image).expand(3, -1, -1).numpy() for image in grey]
    inputs = own(images, input_boxes=[[box.tolist()] for box in boxes], return_tensors="pt")
    with torch.no_grad():
        output = official(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
        )
    masks = own.image_processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
    )
    expected = torch.stack([mask[0, 0] for mask in masks])
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_each_slice_is_drawn_in_the_box_of_the_region_there(tiny: SamSegmenter) -> None:
    image = scan()
    segmenter = tiny.prompted("liver", liver(image))
    prediction = predict(segmenter, image, CPU)
    z, y, x = BOXES[1]
    margin = int(np.ceil(BOX_MARGIN_MM / 3))
    box = [x.start - margin, y.start - margin, x.stop - 1 + margin, y.stop - 1 + margin]
    grey = prediction.prepared.tensor[0]
    with torch.inference_mode():
        drawn = predict_logits(segmenter.logits, prediction.volume, prediction.tiling)[0]
    for n in range(grey.shape[2]):
        inside = z.start <= n < z.stop
        expected = tiny.segment_boxes(grey[None, ..., n].transpose(1, 2), torch.tensor([box]).float())[0].T
        torch.testing.assert_close(
            drawn[..., n], expected if inside else torch.full_like(expected, BACKGROUND_LOGIT), atol=1e-5, rtol=0
        )
    assert dict(segmenter.labels) == {0: "liver"}
    assert values(prediction.label_map(image))[z].any()
    assert not values(prediction.label_map(image))[: z.start].any()


@pytest.mark.parametrize(
    "direction",
    [(1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, 1, 1, 0, 0, 0, 1, 0), OBLIQUE],
    ids=["axial", "sagittal", "oblique"],
)
def test_slices_are_axial_whatever_way_the_volume_is_stored(tiny: SamSegmenter, direction: tuple[float, ...]) -> None:
    image = scan((1.5, 2.0, 5.0), direction)
    prepared = tiny.prompted("liver", liver(image)).prepare(image)
    assert np.abs(prepared.affine[:3, 2]).argmax() == 2, "the third axis is the body's"
    x, y, z = prepared.spacing_mm
    turned = sitk.DICOMOrient(image, "LPS").GetSpacing()
    assert x == pytest.approx(y) and x == pytest.approx(min(turned[:2])) and z == pytest.approx(max(turned[2], 1))
    assert prepared.held is not None
    held, mask = prepared.held[0] > 0.5, prepared.mask_from(liver(image))
    assert bool(held[mask].all()), "the box holds the region"
    assert torch.equal(held.flatten(0, 1).any(0), mask.flatten(0, 1).any(0))


def test_slices_thinner_than_a_millimetre_are_joined(tiny: SamSegmenter) -> None:
    image = scan((0.8, 0.8, 0.5))
    assert tiny.prompted("liver", liver(image)).prepare(image).spacing_mm == pytest.approx((0.8, 0.8, 1.0))


def test_ct_is_seen_in_the_window_of_soft_tissue(tiny: SamSegmenter) -> None:
    image = scan()
    grey = tiny.prompted("liver", liver(image)).prepare(image).tensor[0]
    expected = np.clip((values(image).transpose(2, 1, 0) + 160) / 400, 0, 1)
    np.testing.assert_allclose(grey, expected, atol=1e-6)


def test_anything_else_is_seen_between_percentiles_of_the_body(tiny: SamSegmenter) -> None:
    noise = np.random.default_rng(0).gamma(4, 60, values(scan()).shape).astype(np.float32)
    noise[values(scan()) == -1000] = 0
    image = sitk.GetImageFromArray(noise)
    image.CopyInformation(scan())
    assert imaging.guess_modality(image) != "CT"
    body = values(imaging.body_mask(image)) != 0
    low, high = np.percentile(noise[body], (0.5, 99.5))
    grey = tiny.prompted("liver", liver(image)).prepare(image).tensor[0]
    np.testing.assert_allclose(grey, np.clip((noise.transpose(2, 1, 0) - low) / (high - low), 0, 1), atol=1e-5)


def test_the_modality_that_the_user_tells_counts_more_than_the_intensities(tiny: SamSegmenter) -> None:
    image = scan() + 1000.0  # a CT whose air is at 0, as some are exported
    assert imaging.guess_modality(image) != "CT"
    grey = tiny.prompted("liver", liver(image), "CT").prepare(image).tensor[0]
    np.testing.assert_allclose(grey, np.clip((values(image).transpose(2, 1, 0) + 160) / 400, 0, 1), atol=1e-6)
    guessed, told = tiny.prompted("liver", liver(scan())), tiny.prompted("liver", liver(scan()), "MR")
    assert not torch.equal(guessed.prepare(scan()).tensor, told.prepare(scan()).tensor)


def test_explaining_passes_the_modality_on(tiny: SamSegmenter) -> None:
    mask = liver(scan())
    for modality in ("CT", "MR"):
        result = run(tiny, localizer=Absent(), method="structures", region=mask, modality=modality)
        expected = predict(tiny.prompted("liver", mask, modality), scan(), CPU)
        assert np.array_equal(values(result.segmentation), values(expected.label_map(scan()))), modality


def test_corners_are_the_first_and_last_pixels_of_each_box() -> None:
    held = torch.zeros(3, 10, 12)
    held[0, 2:7, 3:11] = held[1, 9, 0] = held[2] = 1
    assert box_corners(held).tolist() == [[3, 2, 10, 6], [0, 9, 0, 9], [0, 0, 11, 9]]


# --- scoring


def scorer_of(tiny: SamSegmenter, baseline: Baseline = "air") -> tuple[Scorer, Tensor]:
    """The liver of `scan` as drawn; and (X, Y, Z), the voxels that it is scored over."""
    image = scan()
    segmenter = tiny.prompted("liver", liver(image))
    prediction = predict(segmenter, image, CPU)
    prepared, reference = prediction.prepared, prediction.drawn([0])
    rim = prepared.mask_from(liver(image))
    held = prepared.held
    replacement, _ = baseline_for(baseline, prepared.tensor, rim, prepared.spacing_mm)
    target = Target("liver", (0,), reference & rim, rim)
    whole = prepared.network_input
    return Scorer(segmenter.logits, whole, with_held(replacement, held), prediction.tiling, target, "sigmoid"), rim


PLACES = [
    Perturbation((slice(4, 10), slice(5, 11), slice(6, 8))),
    Perturbation((slice(0, 22), slice(0, 20), slice(0, 16))),
    Perturbation((slice(2, 9), slice(3, 14), slice(2, 7)), 0.4),
    Perturbation((slice(2, 9), slice(3, 14), slice(0, 3))),
]


@pytest.mark.parametrize("baseline", BASELINES)
def test_incremental_scores_are_those_of_full_inference(tiny: SamSegmenter, baseline: Baseline) -> None:
    scorer, voxels = scorer_of(tiny, baseline)
    found = dict(pair for batch in scorer.lost(PLACES) for pair in batch)
    for number, perturbation in enumerate(PLACES):
        volume, box = scorer.volume.clone(), (slice(None), *perturbation.box)
        strength = float(perturbation.strength)  # type: ignore[arg-type]
        replacement = scorer.baseline
        new = replacement[box] if isinstance(replacement, Tensor) else replacement(perturbation.box, strength)
        volume[box] = (1 - strength) * volume[box] + strength * new
        assert torch.equal(volume[1], scorer.volume[1]), "the boxes are not perturbed"
        logits = predict_logits(scorer.forward, volume, scorer.tiling)[:, voxels]
        score = target_score("soft dice", logits, scorer.target.reference[voxels], 0, "sigmoid")
        assert found[number] == pytest.approx(scorer.full_score - float(score), abs=1e-4)
    assert max(abs(v) for v in found.values()) > 0.005
    assert found[3] == 0, "it meets no slice of the target"


def test_the_encoder_runs_only_for_slices_that_a_perturbation_touches(tiny: SamSegmenter) -> None:
    z = BOXES[1][0]
    depth = z.stop - z.start
    with counted(tiny) as calls:
        segmenter = tiny.prompted("liver", liver(scan()))
        predict(segmenter, scan(), CPU)
    assert calls == [1] * depth, "slices without a box cost nothing, and a lone one is not doubled"
    scorer, _ = scorer_of(tiny)
    for perturbation, slices in zip(PLACES, (2, depth, 2, 0), strict=True):
        with counted(tiny) as calls:
            list(scorer.lost([perturbation]))
        assert calls == [1] * slices


def test_gradients_are_those_of_finite_differences_and_none_reach_the_boxes(tiny: SamSegmenter) -> None:
    scorer, _ = scorer_of(tiny)
    gradient = scorer.gradient()
    assert not gradient[1].any()
    assert not gradient[0, ..., 0].any(), "a slice without a box has none"
    step = torch.zeros_like(scorer.volume)
    step[0] = 0.0001 * gradient[0] / gradient[0].abs().max()
    change = scorer.differentiable_score(scorer.volume + step) - scorer.differentiable_score(scorer.volume - step)
    assert change == pytest.approx(2 * float((gradient * step).sum()), rel=0.05)
    assert abs(change) > 1e-5


def test_a_slice_without_a_box_can_be_differentiated(tiny: SamSegmenter) -> None:
    segmenter = tiny.prompted("liver", liver(scan()))
    patches = torch.rand(2, 2, 8, 9, 1) * torch.tensor([1.0, 0.0])[None, :, None, None, None]
    patches.requires_grad_()
    logits = segmenter.logits(patches)
    assert logits.shape == (2, 1, 8, 9, 1) and logits.unique().tolist() == [BACKGROUND_LOGIT]
    logits.sum().backward()
    assert patches.grad is not None and not patches.grad.any()


def test_half_precision_runs(tiny: SamSegmenter) -> None:
    segmenter, image = tiny.prompted("liver", liver(scan())), scan()
    patches = segmenter.prepare(image).network_input[None, ..., 6:7]
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        half = segmenter.logits(patches)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, segmenter.logits(patches), atol=0.3, rtol=0)


# --- the whole pipeline


@pytest.mark.parametrize("method", QUICK)
def test_every_method_explains_it(tiny: SamSegmenter, method: str) -> None:
    baseline = "mean" if method == "integrated-gradients" else "surroundings"
    # Its weights are random, so that it draws far from what the words find, and the region is the box of all.
    samples = {"samples": 80} if method == "lime" else {}
    result = run(tiny, method=method, baseline=baseline, **samples)
    saliency = values(result.saliency)
    assert geometry(result.saliency) == geometry(scan())
    assert saliency.ndim == 3 and np.isfinite(saliency).all() and np.abs(saliency).max() > 1e-4
    assert result.complete and result.record["parameters"]["pointed_by"] == "localizer"
    # Voxels of slices that the network does not look at cannot matter; resampling adds one at most.
    z = BOXES[1][0]
    if method == "integrated-gradients":
        assert not saliency[: z.start].any()


def test_seg_grad_cam_is_refused(tiny: SamSegmenter) -> None:
    with pytest.raises(InputError, match="seg-grad-cam looks into the network, and this one cannot be looked into"):
        run(tiny, method="seg-grad-cam")


def test_the_region_is_found_before_the_network_draws(tiny: SamSegmenter) -> None:
    seen: list[str] = []
    finder = Finder()
    result = run(tiny, localizer=finder, on_progress=lambda p: seen.append(p.stage))
    assert list(dict.fromkeys(seen)) == ["localize", "segment", "explain"]
    assert len(finder.asked) == 1, "the localizer is run once"
    assert result.target == {"name": "liver", "label": 1, "voxels": "predicted"}
    assert result.labels == {1: "liver"}
    # Of random weights little of what is drawn lies where the words were found.
    assert result.region.source == "prediction box" and result.region.localizer_agreement is not None
    assert result.record["models"]["segmenter"] == dict(tiny.provenance)
    # The box is that of the region without its margin.
    found = finder.locate(scan(), "liver", "CT", lambda d, t: None)
    core = guided_region(scan(), found, None, "liver", threshold=0.5, margin_mm=0).mask
    expected = predict(tiny.prompted("liver", core), scan(), CPU).label_map(scan())
    assert np.array_equal(values(result.segmentation), values(expected))
    assert set(result.record["timings_s"]) >= {"localize", "segment", "explain"}


def test_the_whole_volume_is_probed_around_what_the_localizer_points_at(tiny: SamSegmenter) -> None:
    guided, whole = run(tiny, method="structures"), run(tiny, method="structures", region="whole")
    assert np.array_equal(values(guided.segmentation), values(whole.segmentation))
    assert whole.region.source == "whole"
    assert whole.record["models"]["localizer"]["name"] == "finder"


class Absent:
    """A localizer that must not be needed."""

    name, threshold = "absent", 0.5

    @property
    def provenance(self) -> dict[str, Any]:
        return {"name": self.name}

    def locate(self, *arguments: Any) -> sitk.Image:
        raise AssertionError("the localizer was asked")


@pytest.mark.parametrize("by", ["region", "target"])
def test_a_mask_of_the_user_points_without_a_localizer(tiny: SamSegmenter, by: str) -> None:
    image = scan()
    mask = mask_of(image, BOXES[2] if by == "region" else BOXES[1])
    options = {"region": mask} if by == "region" else {"target": mask, "region": "whole"}
    result = run(tiny, localizer=Absent(), method="structures", **options)
    expected = predict(tiny.prompted("liver", mask), image, CPU).label_map(image)
    assert np.array_equal(values(result.segmentation), values(expected))
    assert result.record["parameters"]["pointed_by"] == by
    assert result.record["models"]["localizer"] is None


def test_a_box_of_the_user_points(tiny: SamSegmenter) -> None:
    image = scan()
    (z, y, x) = BOXES[2]
    low = image.TransformIndexToPhysicalPoint((x.start, y.start, z.start))
    high = image.TransformIndexToPhysicalPoint((x.stop - 1, y.stop - 1, z.stop - 1))
    bounds = (-high[0] - 1, -low[0] + 1, -high[1] - 1, -low[1] + 1, low[2] - 1, high[2] + 1)
    expected = predict(tiny.prompted("liver", mask_of(image, BOXES[2])), image, CPU).label_map(image)
    assert np.array_equal(values(run(tiny, method="structures", region=bounds).segmentation), values(expected))


def test_results_lie_in_the_geometry_of_an_oblique_scan(tiny: SamSegmenter) -> None:
    image = scan((3.0, 3.0, 4.0), OBLIQUE)
    result = run(tiny, image)
    assert geometry(result.segmentation) == geometry(result.saliency) == geometry(image)
    assert values(result.segmentation).any()


def test_what_the_localizer_does_not_find_is_told(tiny: SamSegmenter) -> None:
    with pytest.raises(InputError, match='the localizer finds no "liver"'):
        run(tiny, scan(structures=(2, 3)))


def test_another_structure_than_the_prompts_is_refused(tiny: SamSegmenter) -> None:
    with pytest.raises(InputError, match="does not segment the spleen; say with --target the class to explain: liver"):
        run(tiny, target="spleen")


# --- prompts and folders


def test_without_a_prompt_it_asks_for_a_region(tiny: SamSegmenter) -> None:
    assert isinstance(tiny, Promptable) and not tiny.labels
    with pytest.raises(InputError, match="needs a region"):
        tiny.prepare(scan())
    with pytest.raises(InputError, match="needs a region"):
        tiny.logits(torch.zeros(1, 2, 8, 8, 1))
    assert not isinstance(tiny.prompted("liver", liver(scan())), Promptable)


def test_a_mask_elsewhere_is_refused(tiny: SamSegmenter) -> None:
    mask = liver(scan())
    mask.SetOrigin((1000.0, 0.0, 0.0))
    with pytest.raises(InputError, match=r"Nothing of the region .* lies in this volume"):
        tiny.prompted("liver", mask).prepare(scan())


def test_patches_are_all_slices() -> None:
    tiling = Tiling.of((5, 6, 3), sam.slice_tiling)
    assert len(tiling.patches) == 3 and tiling.weight.shape == (5, 6, 1)
    volume = torch.rand(1, 5, 6, 3)
    assert torch.equal(predict_logits(lambda x: x, volume, tiling), volume)


def test_sam_folders_are_told_by_their_configuration(folder: Path, tmp_path: Path) -> None:
    assert is_sam(folder)
    assert not is_sam(tmp_path) and not is_sam(tmp_path / "absent") and not is_sam(folder / "config.json")
    assert not is_sam(copy_of(folder, tmp_path / "other", model_type="sam2"))
    bare = copy_of(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    assert not is_sam(bare)
    for text in (b"[1]", b"{", b"\xff\xfe", b"[" * 100_000):
        (bare / "config.json").write_bytes(text)
        assert not is_sam(bare)


def test_provenance_names_folder_and_checksum(folder: Path, tiny: SamSegmenter) -> None:
    import hashlib

    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    expected = {"name": "tiny-sam", "kind": "SAM", "version": "unknown", "licence": "unknown", "sha256": digest}
    assert dict(tiny.provenance) == expected
    assert not any(p.requires_grad for p in tiny.network.parameters()) and not tiny.network.training


def test_a_pickle_of_tensors_is_read_and_one_of_code_is_not(folder: Path, tiny: SamSegmenter, tmp_path: Path) -> None:
    path = copy_of(folder, tmp_path / "pickled")
    (path / "model.safetensors").unlink()
    torch.save(tiny.network.state_dict(), path / "pytorch_model.bin")
    found = SamSegmenter(path, CPU)
    grey, boxes = torch.rand(1, 20, 20), torch.tensor([[2.0, 2.0, 9.0, 9.0]])
    assert torch.equal(found.segment_boxes(grey, boxes), tiny.segment_boxes(grey, boxes))
    marker = tmp_path / "ran"
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(str(marker))))
    with pytest.raises(InputError, match="does not load"):
        SamSegmenter(path, CPU)
    assert not marker.exists()


def test_of_a_configuration_only_known_values_reach_transformers(folder: Path, tmp_path: Path) -> None:
    """By others it fetches kernels, adapters and quantisers, which are code."""
    code = {"_attn_implementation": "kernels-community/evil", "attn_implementation": "some/evil"}
    path = copy_of(folder, tmp_path / "code", auto_map={"AutoModel": "evil.Evil"}, **code)
    config = json.loads((path / "config.json").read_text())
    config["vision_config"] |= code | {"auto_map": {"AutoModel": "evil.Evil"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/evil"}))
    loaded = SamSegmenter(path, CPU).network
    assert loaded.config._attn_implementation == loaded.vision_encoder.config._attn_implementation == "sdpa"
    assert not hasattr(loaded.config.vision_config, "auto_map")


@pytest.mark.parametrize("value", ["os.system", -1, {}, [3], 1e300, None])
def test_a_value_of_the_wrong_type_is_refused_by_its_name(folder: Path, tmp_path: Path, value: Any) -> None:
    path = copy_of(folder, tmp_path / "typed", vision_config={**VISION, "hidden_size": value})
    with pytest.raises(InputError, match=r"does not load \(under vision_config hidden_size a whole number"):
        SamSegmenter(path, CPU)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def lacking_weights(folder: Path, path: Path) -> Path:
    from safetensors.torch import load_file, save_file

    copy_of(folder, path)
    state = load_file(path / "model.safetensors")
    state.pop("mask_decoder.iou_token.weight")
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


def cut_off(folder: Path, path: Path) -> Path:
    copy_of(folder, path)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:2000])
    return path


def of_another_size(folder: Path, path: Path) -> Path:
    return copy_of(folder, path, mask_decoder_config={**DECODER, "mlp_dim": 48})


def quantised(folder: Path, path: Path) -> Path:
    return copy_of(folder, path, quantization_config={"quant_method": "bitsandbytes"})


def preprocessed(**changes: Any) -> Any:
    def make(folder: Path, path: Path) -> Path:
        copy_of(folder, path)
        said = json.loads((path / "preprocessor_config.json").read_text())
        (path / "preprocessor_config.json").write_text(json.dumps({**said, **changes}))
        return path

    return make


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lacking_weights, "1 do not fit, such as mask_decoder.iou_token.weight"),
        (cut_off, "does not load"),
        (of_another_size, "config.json|does not load"),
        (quantised, "is quantised"),
        (lambda folder, path: path, "is no SAM"),
        (preprocessed(image_std=[0, 0, 0]), "preprocessing .* is not one that is known here"),
        (preprocessed(resample=5), "preprocessing .* is not one that is known here"),
        (preprocessed(do_pad=False), "preprocessing .* is not one that is known here"),
        (
            preprocessed(pad_size={"height": 80, "width": 80}),
            "takes images of 64 pixels and its preprocessing gives 80",
        ),
    ],
)
def test_unusable_folders_are_refused_in_one_sentence(folder: Path, tmp_path: Path, make: Any, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        SamSegmenter(make(folder, tmp_path / "made"), CPU)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.sam.modeling_sam", None)
    with pytest.raises(InputError, match=r"SAM needs the package transformers .*: pip install transformers"):
        SamSegmenter(folder, CPU)


def test_the_preprocessing_may_lie_in_the_file_of_the_processor(folder: Path, tmp_path: Path) -> None:
    path = preprocessed(image_mean=[0.1, 0.2, 0.3])(folder, tmp_path / "nested")
    said = json.loads((path / "preprocessor_config.json").read_text())
    expected = sam.Preprocessing.of(path)
    assert expected.mean == (0.1, 0.2, 0.3) and expected.padded == SIDE
    (path / "preprocessor_config.json").unlink()
    assert sam.Preprocessing.of(path) == sam.Preprocessing()
    (path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    assert sam.Preprocessing.of(path) == expected


def test_a_model_of_the_hub_that_cannot_be_had_is_told() -> None:
    with pytest.raises(InputError, match=f"The model {HUB}nobody/no-such-sam cannot be had") as caught:
        SamSegmenter(f"{HUB}nobody/no-such-sam", CPU)  # HF_HUB_OFFLINE is set by conftest.py
    assert "\n" not in str(caught.value)


def test_a_model_of_the_hub_is_taken_from_the_cache(
    folder: Path, tiny: SamSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout in which the hub's client keeps a download."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    kept = tmp_path / "models--some--sam"
    shutil.copytree(folder, kept / "snapshots" / revision)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(revision)
    hub = import_without_operators("transformers.utils.hub")
    original = hub.cached_file
    monkeypatch.setattr(hub, "cached_file", lambda *a, **k: original(*a, cache_dir=tmp_path, **k))
    found = SamSegmenter(f"{HUB}some/sam", CPU)
    assert (found.name, found.provenance["version"]) == ("some/sam", revision)
    assert found.provenance["sha256"] == tiny.provenance["sha256"]
