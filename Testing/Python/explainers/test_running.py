"""Every method through the whole pipeline: planted truth, null control, randomised weights, cancel, memory, choices."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.networks.nets import UNet
from scipy.stats import spearmanr
from torch import Tensor

from Testing.Python.test_explanation import BOXES, OBLIQUE, Finder, Network, geometry, mask_of, scan, values
from XAICLIPLib import imaging, pipeline
from XAICLIPLib.errors import Cancelled, InputError, NotEnoughMemory
from XAICLIPLib.explainers import methods
from XAICLIPLib.explainers.methods import METHODS
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.pipeline import explain, localize
from XAICLIPLib.progress import Progress
from XAICLIPLib.scoring.options import BASELINES, SCORES

QUICK: dict[str, dict[str, Any]] = {
    "occlusion": {"window_mm": 18.0, "stride_mm": 9.0},
    "rise": {"cell_mm": 15.0, "samples": 120, "wanted_error": 0.0},
    "lime": {"size_mm": 15.0, "samples": 150},
    "structures": {},
    "owen-gradients": {"steps": 3},
    "integrated-gradients": {"steps": 8},
    "seg-grad-cam": {},
}
PERTURBING = ["occlusion", "rise", "lime", "structures"]
FILES = ("saliency", "probed", "region", "segmentation")


class Trained(Network):
    """The network of known behaviour with a network inside, for methods that look into one."""

    def __init__(self, network: torch.nn.Module, **options: Any) -> None:
        super().__init__(**options)
        self.network = network

    def logits(self, patches: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.network(patches)
        return found


class ByIntensity(torch.nn.Module):
    """Tells structures by their HU, as `Network` does, by a convolution that can be looked into.

    It likes them best at 10 HU more than they have in `scan`, where a gradient would be 0.
    """

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.features = torch.nn.Conv3d(1, 1, 1, bias=False).requires_grad_(False)
        self.features.weight.fill_(1)
        self.blind = blind

    def forward(self, x: Tensor) -> Tensor:
        seen = self.features(x)[:, 0]
        if self.blind:  # draws the liver's box wherever it is told to, whatever it sees
            seen = torch.zeros_like(seen) + 0 * seen
            seen[:, 5:12, 5:12, 4:10] = 1.0
        return torch.stack([torch.zeros_like(seen), *(4 - 8 * (seen - n - 0.1).abs() for n in (1, 2, 3))], 1)


class OnlyCue(torch.nn.Module):
    """Draws the liver in one place, as far as it sees what is brighter than 200 HU anywhere: the right kidney.

    What lies where it draws the liver is nothing to it. Its feature map is how bright the cue is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv3d(1, 1, 1, bias=False).requires_grad_(False)
        self.features.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.features((x - 2).relu())[:, 0]
        whole = np.prod([s.stop - s.start for s in BOXES[3]])
        liver = torch.full_like(seen, -10)
        x_, y_, z_ = BOXES[1][::-1]
        liver[:, x_, y_, z_] = 0
        liver += (8 * seen.sum((1, 2, 3)) / whole - 4)[:, None, None, None]
        return torch.stack([torch.zeros_like(seen), liver, torch.full_like(seen, -9), 20 * seen - 5], 1)


def explained(method: str, **options: Any) -> Explanation:
    """Explain `scan` with the network of known behaviour, everywhere and quickly, unless told otherwise."""
    told: dict[str, Any] = {"image": scan(), "prompt": "liver", "model": Network(), "localizer": Finder()}
    told |= {"region": "whole", "device": "cpu", "method": method} | QUICK[method] | options
    return explain(**told)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_an_explanation_that_saves(method: str, tmp_path: Path) -> None:
    result = explained(method, model=Trained(ByIntensity()))
    assert result.complete
    assert np.abs(values(result.saliency)).max() > 0
    written = result.save(tmp_path)
    record = json.loads(written["explanation"].read_text(encoding="utf-8"))
    files = {path.name for path in written.values()}
    assert set(record.pop("written")) == files - {"explanation.json"}
    assert record == result.record, "all of it is JSON"
    assert record["complete"] is True
    assert record["parameters"]["method"] == method
    assert record["parameters"]["described"].startswith(method)
    assert QUICK[method].items() <= record["parameters"].items()
    assert record["measurements"]["perturbations"] == record["measurements"]["perturbations_planned"] > 0
    assert written["figure"].stat().st_size > 10_000
    assert ("standard_error" in written) == (method in ("rise", "lime"))


@pytest.mark.parametrize("method", METHODS)
def test_every_volume_lies_where_an_oblique_input_lies(method: str) -> None:
    image = scan((1.7, 2.3, 4.1), OBLIQUE)
    result = explained(method, image=image, model=Trained(ByIntensity(), grid_mm=2.5), region="guided")
    for volume in (result.saliency, result.region.mask, result.segmentation, result.prediction, result.standard_error):
        assert volume is None or geometry(volume) == geometry(image)
    assert result.saliency.GetPixelID() == sitk.sitkFloat32
    assert np.isfinite(values(result.saliency)).all()
    assert np.abs(values(result.saliency)).max() > 0


def test_the_standard_error_of_an_earlier_method_does_not_stay_behind(tmp_path: Path) -> None:
    explained("rise").save(tmp_path)
    error = imaging.read_volume(tmp_path / "standard_error.nrrd")
    assert sitk.GetArrayViewFromImage(error).min() >= 0
    explained("occlusion").save(tmp_path)
    assert not (tmp_path / "standard_error.nrrd").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_looks_at_one_cue_has_its_saliency_there(method: str) -> None:
    """The liver is drawn only as far as the right kidney is there to be seen: a cue outside the target."""
    image = scan()
    # With air for the baseline a pattern that hides the cue by a tenth hides all of it.
    told = {"baseline": "mean", "region": mask_of(image, (slice(1, -1), slice(2, -2), slice(2, -2)))}
    result = explained(method, image=image, model=Trained(OnlyCue(), window=None), **told)
    assert np.array_equal(values(result.prediction), values(mask_of(result.image, BOXES[1])))
    saliency = values(result.saliency)
    peak = np.unravel_index(int(saliency.argmax()), saliency.shape)
    reach = 2 if method == "rise" else 0  # half a cell: its map is as coarse as that
    near = tuple(slice(s.start - reach, s.stop + reach) for s in BOXES[3])
    assert all(s.start <= p < s.stop for p, s in zip(peak, near, strict=True)), (peak, near)
    assert saliency[BOXES[3]].mean() > 5 * np.abs(saliency[BOXES[1]]).mean()
    assert saliency[BOXES[3]].mean() > 3 * np.abs(saliency[BOXES[2]]).mean()


@pytest.mark.parametrize("method", ["occlusion", "rise", "lime"])
def test_a_network_that_also_looks_at_a_landmark_has_its_peak_there(method: str) -> None:
    """The liver, told by its HU, is drawn only while the left kidney's place is there to be seen."""
    x, y, z = (BOXES[2][axis] for axis in (2, 1, 0))
    saliency = values(explained(method, model=Network(landmark=(x, y, z), window=None)).saliency)
    peak = np.unravel_index(int(saliency.argmax()), saliency.shape)
    assert all(s.start - 2 <= p < s.stop + 2 for p, s in zip(peak, BOXES[2], strict=True)), (peak, BOXES[2])


def test_a_network_that_looks_at_another_structure_leans_on_it() -> None:
    x, y, z = (BOXES[2][axis] for axis in (2, 1, 0))
    found = explained("structures", model=Network(landmark=(x, y, z), window=None)).measurements["structures"]
    lost = {row["structure"]: row["score_lost"] for row in found}
    assert lost["left kidney"] > 0.2
    assert lost["right kidney"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_ignores_its_input_has_no_saliency(method: str) -> None:
    result = explained(method, model=Trained(ByIntensity(blind=True), window=None))
    assert not values(result.saliency).any()
    assert result.standard_error is None or not values(result.standard_error).any()
    assert result.measurements["effect_inside_target"] is None


def unet(randomised: int = 0) -> UNet:
    """A small network whose last weights are drawn anew, layer by layer from the output (Adebayo et al. 2018)."""
    torch.manual_seed(0)
    network = UNet(spatial_dims=3, in_channels=1, out_channels=4, channels=(4, 8), strides=(2,), norm="instance")
    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.ConvTranspose3d))]
    generator = torch.Generator().manual_seed(5)
    for layer in layers[len(layers) - randomised :]:
        layer.weight.data.normal_(0, float(layer.weight.detach().std()), generator=generator)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        ("occlusion", {"window_mm": 9.0, "stride_mm": 9.0}),
        ("rise", {"cell_mm": 18.0, "samples": 200}),
        ("lime", {"size_mm": 18.0}),
        ("integrated-gradients", {}),
    ],
)
def test_randomised_weights_change_the_map_and_chance_does_not(method: str, sizes: dict[str, Any]) -> None:
    """Rank correlation with the map of the untouched network, after Adebayo et al. 2018.

    Another seed is the control: a map of mere chance would also change with the weights.
    """
    image = scan()
    told = {"image": image, "target": mask_of(image, BOXES[1]), "score": "logit margin"} | sizes
    told["region"] = mask_of(image, (slice(2, 14), slice(2, 15), slice(2, 14)))

    def alike(randomised: int, seed: int = 0) -> float:
        found = values(explained(method, model=Trained(unet(randomised), window=None), seed=seed, **told).saliency)
        return float(spearmanr(original[probed], found[probed]).statistic)

    original = values(explained(method, model=Trained(unet(), window=None), **told).saliency)
    probed = original != 0
    other_seed, last_layer, two_layers, all_layers = alike(0, seed=1), alike(1), alike(2), alike(3)
    assert other_seed > 0.85
    assert last_layer < 0.75
    assert max(two_layers, all_layers) < 0.6


@pytest.mark.parametrize("method", METHODS)
def test_cancelling_after_the_first_batch_gives_a_valid_partial_result(method: str, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def stop() -> bool:
        return bool(seen) and seen[-1].stage == "explain" and seen[-1].done > 0

    result = explained(method, model=Trained(ByIntensity()), on_progress=seen.append, cancelled=stop, batch_size=1)
    assert not result.complete
    assert 0 < result.measurements["perturbations"] < result.measurements["perturbations_planned"]
    captions = METHODS[method].captions
    told = "the saliency is incomplete" if captions.value else f"{captions.counted}: the saliency is a rough one"
    assert any(warning.startswith("Cancelled after") and told in warning for warning in result.warnings)
    written = result.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written.values()}
    for name in FILES:
        volume = sitk.ReadImage(str(written[name]))
        assert imaging.same_geometry(volume, result.image)
        assert np.isfinite(values(volume)).all()
    record = json.loads(written["explanation"].read_text(encoding="utf-8"))
    assert record.pop("written") and record == result.record
    assert result.record["complete"] is False
    assert written["figure"].read_bytes().endswith(b"IEND\xaeB`\x82"), "a whole PNG"


@pytest.mark.parametrize("method", PERTURBING)
def test_cancelling_before_a_perturbation_is_scored_gives_none(method: str) -> None:
    seen: list[Progress] = []

    def stop() -> bool:
        return bool(seen) and seen[-1].stage == "explain"

    with pytest.raises(Cancelled):
        explained(method, on_progress=seen.append, cancelled=stop, batch_size=1)
    assert seen[-1].done == 0 < seen[-1].total


@pytest.mark.parametrize(
    ("method", "kernel"), [*((method, None) for method in METHODS), ("lime", "shap")], ids=lambda v: str(v)
)
def test_the_map_so_far_can_be_seen_from_the_first_scores_on(
    method: str, kernel: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batches of one patch each finish no perturbation, and there is nothing to show yet."""
    monkeypatch.setattr(pipeline, "ESTIMATE_EVERY_S", 0.0)
    monkeypatch.setattr(pipeline, "ESTIMATE_SHARE", 1e9)
    seen: list[Progress] = []
    shown: list[tuple[int, sitk.Image]] = []
    told: dict[str, Any] = {} if kernel is None else {"kernel": kernel}
    told |= {"rise": {"samples": 40}, "lime": {"size_mm": 24.0, "samples": 40}}.get(method, {})
    result = explained(
        method,
        model=Trained(ByIntensity()),
        batch_size=1,
        on_progress=seen.append,
        on_estimate=lambda image: shown.append((seen[-1].done, image)),
        **told,
    )
    assert shown
    assert shown[0][0] > 0
    for _, image in shown:
        assert geometry(image) == geometry(result.image)
        assert np.isfinite(values(image)).all()
    assert np.array_equal(values(shown[-1][1]), values(result.saliency))


@pytest.mark.parametrize("method", METHODS)
def test_little_memory_gives_the_same_map_and_a_warning(method: str) -> None:
    class Small(Trained):
        def logits(self, patches: Tensor) -> Tensor:
            if len(patches) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().logits(patches)

    small, large = (explained(method, model=kind(ByIntensity())) for kind in (Small, Trained))
    assert values(small.saliency) == pytest.approx(values(large.saliency), abs=1e-5)
    assert np.abs(values(large.saliency)).max() > 0
    assert any("Memory ran out" in warning for warning in small.record["warnings"])
    assert not any("Memory ran out" in warning for warning in large.record["warnings"])
    assert small.record["parameters"]["batch_size"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_no_memory_for_a_single_patch_is_an_error_and_no_result(method: str) -> None:
    class Full(Trained):
        """Runs out of memory once it has drawn the segmentation."""

        def logits(self, patches: Tensor) -> Tensor:
            if seen and seen[-1].stage == "localize":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().logits(patches)

    seen: list[Progress] = []
    with pytest.raises(NotEnoughMemory, match="memory of the GPU ran out while the scan was explained"):
        explained(method, model=Full(ByIntensity()), region="guided", on_progress=seen.append)


@pytest.mark.parametrize("method", PERTURBING)
def test_every_baseline_is_used_and_named(method: str) -> None:
    maps = []
    for baseline in BASELINES:
        # Of a score without bounds, for which it matters how wrong what is put in place of the liver is.
        quick = {"rise": {"samples": 60}, "lime": {"samples": 120}}.get(method, {})
        result = explained(method, baseline=baseline, score="logit margin", **quick)
        assert result.record["parameters"]["baseline"] == baseline
        assert values(result.saliency).max() > 0
        maps.append(values(result.saliency))
    for one, other in itertools.combinations(maps, 2):
        assert np.abs(one - other).max() > 1e-3


def test_integrated_gradients_go_from_one_baseline_and_refuse_another_for_each_place() -> None:
    maps = [
        values(explained("integrated-gradients", model=Trained(ByIntensity()), baseline=baseline).saliency)
        for baseline in ("air", "mean", "blur")
    ]
    assert all(np.abs(one - other).max() > 1e-5 for one, other in itertools.combinations(maps, 2))
    with pytest.raises(InputError, match="choose the baseline air, mean or blur"):
        explained("integrated-gradients", model=Trained(ByIntensity()), baseline="surroundings")


@pytest.mark.parametrize("method", METHODS)
def test_every_score_is_used_and_named(method: str) -> None:
    quick = {"rise": {"samples": 60}, "lime": {"samples": 120}}.get(method, {})
    maps = {}
    for score in SCORES:
        result = explained(method, model=Trained(ByIntensity()), score=score, **quick)
        assert result.record["parameters"]["score"] == score
        maps[score] = values(result.saliency)
        assert maps[score][BOXES[1]].max() > 0
        assert not any("do not interpret" in warning for warning in result.warnings)
    for one, other in itertools.combinations(SCORES, 2):
        differs = bool(np.abs(maps[one] - maps[other]).max() > 1e-6)
        by_gradient = method in ("owen-gradients", "integrated-gradients", "seg-grad-cam")
        assert differs != (by_gradient and {one, other} == {"soft dice", "hard dice"}), (one, other)


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_maps(method: str) -> None:
    network = Trained(ByIntensity())
    torch.manual_seed(1)
    first, again, other = (values(explained(method, model=network, seed=seed).saliency) for seed in (3, 3, 4))
    drawn = torch.rand(3)
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (method not in ("rise", "lime")), "where nothing is random, no seed matters"
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3)), "the random state of others is left alone"


def test_the_structures_table_names_every_structure_and_the_rest() -> None:
    found = explained("structures").measurements["structures"]
    assert {row["structure"] for row in found} == {"liver", "left kidney", "right kidney", "rest of the body"}
    assert found[0]["structure"] == "liver"
    assert sum(row["share"] for row in found) == pytest.approx(1)


# Boxes, regions, modality


def box_around(image: sitk.Image, box: tuple[slice, ...]) -> tuple[float, ...]:
    """RAS bounds of a box (z, y, x) of voxels, whole."""
    corners = [
        image.TransformContinuousIndexToPhysicalPoint([s.start - 0.4 if low else s.stop - 0.6 for s in box[::-1]])
        for low in (True, False)
    ]
    ras = np.sort(np.array(corners) * (-1, -1, 1), axis=0)
    return tuple(float(v) for pair in ras.T for v in pair)


@pytest.mark.parametrize("written", [False, True], ids=["numbers", "text"])
def test_a_box_is_a_region_and_a_target(written: bool) -> None:
    image = scan()
    bounds = box_around(image, BOXES[1])
    box: Any = "box:" + ",".join(f"{b:.3f}" for b in bounds) if written else bounds
    result = explained("occlusion", image=image, region=box, target=box)
    assert np.array_equal(values(result.region.mask), values(mask_of(image, BOXES[1])))
    assert result.target["voxels"] == "predicted in a box"
    assert np.array_equal(values(result.prediction), values(mask_of(image, BOXES[1])))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, 2, 3), "six numbers"),
        ((5, 1, 0, 1, 0, 1), "six numbers"),
        ("box:a,b", "six numbers"),
        ((900, 901, 900, 901, 900, 901), "no voxel inside the volume"),
    ],
)
@pytest.mark.parametrize("what", ["region", "target"])
def test_a_box_that_is_none_is_refused(what: str, box: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        explained("occlusion", **{what: box})


def test_a_box_in_which_nothing_is_drawn_is_refused() -> None:
    image = scan()
    with pytest.raises(InputError, match="calls nothing liver in the box"):
        explained("occlusion", image=image, target=box_around(image, BOXES[2]))


def test_a_mask_beside_the_guided_region_is_probed_too() -> None:
    """A false positive far from the organ: why is this called liver?"""
    image = scan()
    array = sitk.GetArrayFromImage(image)
    island = (slice(12, 14), slice(13, 16), slice(4, 7))
    array[island] = 100
    other = sitk.GetImageFromArray(array)
    other.CopyInformation(image)
    finder = Finder(label=2)  # finds the kidney, which lies elsewhere
    result = explained("occlusion", image=other, localizer=finder, region="guided", target=mask_of(image, island))
    assert values(result.region.mask)[island].all()
    assert values(result.saliency)[island].max() > 0.05


def test_margin_and_threshold_and_modality_are_honoured() -> None:
    narrow = explained("occlusion", region="guided", margin_mm=0)
    wide = explained("occlusion", region="guided", margin_mm=12)
    assert values(narrow.region.mask).sum() < values(wide.region.mask).sum()
    assert wide.record["parameters"]["margin_mm"] == 12
    low, high = (explained("occlusion", region="guided", margin_mm=0, threshold=t) for t in (0.2, 0.9))
    assert values(low.region.mask).sum() > values(high.region.mask).sum() > 0
    assert [result.record["parameters"]["threshold"] for result in (low, high)] == [0.2, 0.9]
    told = explained("occlusion", modality="MR")
    assert told.record["input"]["modality"] == "MR"
    assert any("you say that this volume is MR" in warning for warning in told.warnings)


@pytest.mark.parametrize(
    "wrong", [{"margin_mm": -1}, {"margin_mm": "8"}, {"threshold": 0}, {"threshold": 2}, {"modality": "PET"}]
)
def test_wrong_choices_of_the_region_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        explained("occlusion", **wrong)


def test_localize_gives_the_region_that_explain_would_use() -> None:
    image = scan()
    region = localize(image, "liver", localizer=Finder(), device="cpu")
    assert region.source == "guided"
    assert np.array_equal(values(region.mask), values(explained("occlusion", region="guided").region.mask))
    told: dict[str, Any] = {"margin_mm": 0, "threshold": 0.9}
    narrow = localize(image, "liver", localizer=Finder(), device="cpu", **told)
    assert np.array_equal(values(narrow.mask), values(explained("occlusion", region="guided", **told).region.mask))
    assert 0 < values(narrow.mask).sum() < values(region.mask).sum()
    with pytest.raises(InputError, match="margin_mm is -1"):
        localize(image, "liver", localizer=Finder(), device="cpu", margin_mm=-1)
    with pytest.raises(InputError, match="There is no region: the localizer finds no"):
        localize(scan(structures=(2, 3)), "liver", localizer=Finder(), device="cpu")


# Defaults


def test_sizes_that_are_left_open_follow_the_structure() -> None:
    assert methods.method("occlusion").sized_for(64.0) == methods.method("occlusion", window_mm=20, stride_mm=10)
    assert methods.method("rise").sized_for(64.0) == methods.method("rise", cell_mm=20)
    assert methods.method("lime", size_mm=9).sized_for(64.0) == methods.method("lime", size_mm=9)
    with pytest.raises(InputError, match="more than the window for this structure, 20 mm"):
        methods.method("occlusion", stride_mm=25).sized_for(64.0)


def test_a_method_is_told_in_a_few_words() -> None:
    assert methods.method("occlusion", window_mm=20, stride_mm=10).in_words() == "occlusion, window 20 mm, stride 10 mm"
    assert methods.method("rise", cell_mm=20, samples=50).in_words() == "rise, cell 20 mm, samples 50"
    assert methods.method("occlusion", exhaustive=True).in_words() == "occlusion, exhaustive"
    assert all(methods.method(name).name == name for name in METHODS)


def test_a_caption_has_the_sizes_that_were_used() -> None:
    asked = methods.method("occlusion", window_mm=16, stride_mm=8)
    used = {"window_mm_used": [15.6, 15.6, 20.0], "stride_mm_used": [7.8, 7.8, 10.0]}
    assert asked.in_words(used) == (
        "occlusion, window 15.6 × 15.6 × 20 mm (asked: 16), stride 7.8 × 7.8 × 10 mm (asked: 8)"
    )
    assert asked.in_words({"window_mm_used": [16.0] * 3, "stride_mm_used": [8.0] * 3}) == asked.in_words()


def test_slices_that_are_too_thick_for_the_windows_are_told_of() -> None:
    thick = sitk.Resample(
        scan(), (22, 20, 8), sitk.Transform(), sitk.sitkNearestNeighbor, scan().GetOrigin(), (3, 3, 12)
    )
    found = explain(thick, "liver", model=Network(), region="whole", device="cpu", window_mm=16, stride_mm=8)
    assert any("too coarse for windows of 16 mm every 8 mm" in warning for warning in found.warnings)
    assert found.measurements["window_mm_used"] == [18, 18, 12]
    assert "window 18 × 18 × 12 mm (asked: 16)" in found.record["parameters"]["described"]
