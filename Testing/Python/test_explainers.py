"""Every method through the whole pipeline: planted truth, null control, randomised weights, cancel, memory, choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.networks.nets import UNet
from scipy.stats import spearmanr
from test_explanation import BOXES, Finder, Network, mask_of, scan, values
from torch import Tensor

from XAICLIPLib import imaging, methods
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.explainers import in_words, name_of, with_defaults
from XAICLIPLib.explanation import Explanation, Progress, explain, localize
from XAICLIPLib.methods import BASELINES, METHODS, SCORES

QUICK: dict[str, dict[str, Any]] = {
    "occlusion": {"window_mm": 18.0, "stride_mm": 9.0},
    "rise": {"cell_mm": 15.0, "samples": 120, "wanted_error": 0.0},
    "lime": {"size_mm": 12.0, "samples": 300},
    "structures": {},
    "integrated-gradients": {"steps": 8},
    "seg-grad-cam": {},
}
PERTURBING = ["occlusion", "rise", "lime", "structures"]


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
    """Tells structures by their HU, as `Network` does, by a convolution that can be looked into."""

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
        return torch.stack([torch.zeros_like(seen), *(4 - 8 * (seen - n).abs() for n in (1, 2, 3))], 1)


def explained(method: str, **options: Any) -> Explanation:
    """Explain `scan` with the network of known behaviour, everywhere and quickly, unless told otherwise."""
    told: dict[str, Any] = {"image": scan(), "prompt": "liver", "model": Network(), "localizer": Finder()}
    told |= {"region": "whole", "device": "cpu", "method": method} | QUICK[method] | options
    return explain(**told)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_an_explanation_that_saves(method: str, tmp_path: Path) -> None:
    result = explained(method, model=Trained(ByIntensity()))
    assert result.complete
    assert result.saliency.GetSize() == result.image.GetSize()
    assert np.isfinite(values(result.saliency)).all()
    assert np.abs(values(result.saliency)).max() > 0
    written = result.save(tmp_path)
    record = json.loads(written["explanation"].read_text(encoding="utf-8"))
    assert record["parameters"]["method"] == method
    assert record["parameters"]["described"].startswith(method)
    assert record["measurements"]["perturbations"] == record["measurements"]["perturbations_planned"]
    assert written["figure"].stat().st_size > 10_000
    assert ("standard_error" in written) == (method in ("rise", "lime"))


def test_the_standard_error_of_an_earlier_method_does_not_stay_behind(tmp_path: Path) -> None:
    explained("rise").save(tmp_path)
    error = imaging.read_volume(tmp_path / "standard_error.nrrd")
    assert sitk.GetArrayViewFromImage(error).min() >= 0
    explained("occlusion").save(tmp_path)
    assert not (tmp_path / "standard_error.nrrd").exists()


@pytest.mark.parametrize("method", ["occlusion", "rise", "lime"])
def test_a_network_that_looks_at_one_cue_has_its_saliency_there(method: str) -> None:
    """The liver is drawn only while the left kidney's place is there to be seen."""
    x, y, z = (BOXES[2][axis] for axis in (2, 1, 0))
    result = explained(method, model=Network(landmark=(x, y, z), window=None), region="whole")
    peak = np.unravel_index(int(values(result.saliency).argmax()), values(result.saliency).shape)
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
    assert np.abs(values(result.saliency)).max() == pytest.approx(0, abs=1e-6)


def unet(randomised: int = 0) -> UNet:
    """A small network whose last weights are drawn anew, layer by layer from the output (Adebayo et al. 2018)."""
    torch.manual_seed(0)
    network = UNet(spatial_dims=3, in_channels=1, out_channels=4, channels=(4, 8), strides=(2,), norm="instance")
    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.ConvTranspose3d))]
    generator = torch.Generator().manual_seed(5)
    for layer in layers[len(layers) - randomised :]:
        layer.weight.data.normal_(0, float(layer.weight.detach().std()), generator=generator)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("method", ["occlusion", "rise", "lime", "integrated-gradients"])
def test_randomised_weights_change_the_map(method: str) -> None:
    image = scan()
    told = {"target": mask_of(image, BOXES[1]), "score": "logit margin", "image": image}
    maps = [values(explained(method, model=Trained(unet(n), window=None), **told).saliency) for n in (0, 0, 1, 3)]
    probed = maps[0] != 0
    same, last_layer, all_layers = (spearmanr(maps[0][probed], m[probed]).statistic for m in maps[1:])
    assert same == pytest.approx(1)
    assert last_layer < 0.9
    assert all_layers < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_cancelling_gives_a_valid_partial_result_or_none(method: str, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def stop() -> bool:
        return bool(seen) and seen[-1].stage == "explain" and seen[-1].done > 0

    try:
        result = explained(method, model=Trained(ByIntensity()), on_progress=seen.append, cancelled=stop, batch_size=1)
    except Cancelled:
        return
    written = result.save(tmp_path)
    assert np.isfinite(values(sitk.ReadImage(str(written["saliency"])))).all()
    assert json.loads(written["explanation"].read_text(encoding="utf-8"))["complete"] is result.complete


@pytest.mark.parametrize("method", PERTURBING)
def test_little_memory_gives_the_same_map_and_a_warning(method: str) -> None:
    class Small(Network):
        def logits(self, patches: Tensor) -> Tensor:
            if len(patches) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().logits(patches)

    small, large = explained(method, model=Small()), explained(method)
    assert values(small.saliency) == pytest.approx(values(large.saliency), abs=1e-5)
    assert any("Memory ran out" in warning for warning in small.warnings)
    assert small.record["parameters"]["batch_size"] <= 2


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_is_used_and_named(baseline: str) -> None:
    result = explained("occlusion", baseline=baseline)
    assert result.record["parameters"]["baseline"] == baseline
    assert values(result.saliency).max() > 0


@pytest.mark.parametrize("score", SCORES)
def test_every_score_is_used_and_named(score: str) -> None:
    result = explained("occlusion", score=score)
    assert result.record["parameters"]["score"] == score
    assert values(result.saliency)[BOXES[1]].max() > 0
    assert not any("do not interpret" in warning for warning in result.warnings)


@pytest.mark.parametrize("method", ["rise", "lime"])
def test_equal_seeds_give_equal_maps(method: str) -> None:
    first, again, other = (values(explained(method, seed=seed).saliency) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


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
    assert explained("occlusion", region="guided", threshold=0.9).record["parameters"]["threshold"] == 0.9
    told = explained("occlusion", modality="MR")
    assert told.record["input"]["modality"] == "MR"
    assert any("looks like MR" in warning for warning in told.warnings)


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
    with pytest.raises(InputError, match="There is no region: the localizer finds no"):
        localize(scan(structures=(2, 3)), "liver", localizer=Finder(), device="cpu")


# Defaults


def test_sizes_that_are_left_open_follow_the_structure() -> None:
    assert with_defaults(methods.method("occlusion"), 64.0) == methods.method("occlusion", window_mm=20, stride_mm=10)
    assert with_defaults(methods.method("rise"), 64.0) == methods.method("rise", cell_mm=20)
    assert with_defaults(methods.method("lime", size_mm=9), 64.0) == methods.method("lime", size_mm=9)
    with pytest.raises(InputError, match="more than the window for this structure, 20 mm"):
        with_defaults(methods.method("occlusion", stride_mm=25), 64.0)


def test_a_method_is_told_in_a_few_words() -> None:
    assert in_words(methods.method("occlusion", window_mm=20, stride_mm=10)) == "occlusion, window 20 mm, stride 10 mm"
    assert in_words(methods.method("rise", cell_mm=20, samples=50)) == "rise, cell 20 mm, samples 50"
    assert in_words(methods.method("occlusion", exhaustive=True)) == "occlusion, exhaustive"
    assert all(name_of(methods.method(name)) == name for name in METHODS)
