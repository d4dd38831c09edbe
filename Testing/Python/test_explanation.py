"""The whole pipeline, with a network and a localizer whose behaviour is known."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from dicom_study import write_series
from dicom_writer import write
from scipy.special import softmax
from torch import Tensor

from XAICLIPLib import imaging, pipeline
from XAICLIPLib.anatomy import Structure
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.evaluation import assessment
from XAICLIPLib.explainers import methods, setting
from XAICLIPLib.explainers.base import size_for
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.localization.region import grow
from XAICLIPLib.pipeline import explain
from XAICLIPLib.progress import Progress, Run
from XAICLIPLib.reporting import record
from XAICLIPLib.scoring.baselines import BODY_MARGIN_MM
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.sliding_window import SlidingWindow
from XAICLIPLib.system.checksums import sha256

LABELS = {0: "background", 1: "liver", 2: "left kidney", 3: "right kidney"}
OBLIQUE = (np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix(), (3, 3)) * (-1, 1, -1)).ravel()
BOXES = {1: (slice(5, 11), slice(5, 12), slice(4, 10)), 2: (slice(5, 11), slice(5, 11), slice(14, 18))}
BOXES[3] = (slice(5, 11), slice(13, 17), slice(14, 18))
"""(z, y, x) of each structure in `scan`."""


@dataclass
class Network:
    """A network that tells structures by their HU: 100 for label 1, 200 for label 2, ...; air is no structure."""

    labels: Mapping[int, str] = field(default_factory=lambda: dict(LABELS))
    activation: Activation = "softmax"
    inputs: tuple[str, ...] = ("image",)
    window: SlidingWindow | None = field(default_factory=lambda: SlidingWindow((16, 16, 16), 0.25, "gaussian"))
    modality: str | None = "CT"
    grid_mm: float | None = None  # None: the input's own grid
    landmark: tuple[slice, ...] | None = None  # (x, y, z): no structure is seen where this box is not at 0 HU or more
    name: str = "tiny"
    calls: int = 0

    @property
    def provenance(self) -> Mapping[str, str]:
        return {"name": self.name, "sha256": "0" * 64}

    def prepare(self, image: sitk.Image) -> Prepared:
        if self.grid_mm is not None:
            image = imaging.standard_axial(image, self.grid_mm)
        array = sitk.GetArrayFromImage(image).astype(np.float32).transpose(2, 1, 0) / 100
        return Prepared(torch.from_numpy(np.ascontiguousarray(array))[None], imaging.ras_affine(image))

    def logits(self, patches: Tensor) -> Tensor:
        self.calls += 1
        x = patches[:, 0]
        first = 1 if self.activation == "softmax" else 0
        seen = [4 - 8 * (x - n).abs() for n in range(1, len(self.labels) - first + 1)]
        if self.landmark is not None:
            there = x[(slice(None), *self.landmark)].mean(dim=(1, 2, 3))
            seen = [s + 20 * there.clamp(max=0)[:, None, None, None] for s in seen]
        return torch.stack([torch.zeros_like(x)] * first + seen, 1)


@dataclass
class Finder:
    """A localizer that finds what has the HU of a label, on a grid of its own."""

    label: int = 1
    name: str = "finder"
    threshold: float = 0.5
    asked: list[Structure | str] = field(default_factory=list)
    modalities: list[str | None] = field(default_factory=list)

    @property
    def provenance(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": "1" * 64}

    def locate(
        self, image: sitk.Image, prompt: Structure | str, modality: str | None, advance: Callable[[int, int], None]
    ) -> sitk.Image:
        self.asked.append(prompt)
        self.modalities.append(modality)
        for done in (1, 2):
            advance(done, 2)
        found = sitk.Cast(image == 100 * self.label, sitk.sitkFloat32)
        return imaging.standard_axial(found, 4.0)


def scan(
    spacing: tuple[float, ...] = (3.0, 3.0, 3.0),
    direction: Iterable[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
    structures: Iterable[int] = (1, 2, 3),
) -> sitk.Image:
    """Air around a body of 0 HU with boxes of structures, 22 × 20 × 16 voxels."""
    array = np.full((16, 20, 22), -1000, np.int16)
    array[1:-1, 2:-2, 2:-2] = 0
    for label in structures:
        array[BOXES[label]] = 100 * label
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetDirection([float(d) for d in direction])
    image.SetOrigin((-123.25, 45.75, -67.5))
    return image


def mask_of(image: sitk.Image, box: tuple[slice, ...]) -> sitk.Image:
    array = np.zeros(image.GetSize()[::-1], np.uint8)
    array[box] = 1
    mask = sitk.GetImageFromArray(array)
    mask.CopyInformation(image)
    return mask


def values(image: sitk.Image) -> np.ndarray:
    return np.asarray(sitk.GetArrayFromImage(image))


def geometry(image: sitk.Image) -> tuple[Any, ...]:
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def run(image: sitk.Image | str | Path | None = None, prompt: str = "liver", **options: Any) -> Explanation:
    """Explain with the tiny network, whole volume unless told otherwise, few windows."""
    given: dict[str, Any] = {"model": Network(), "localizer": Finder(), "region": "whole", "device": "cpu"}
    given |= {"window_mm": 24.0, "stride_mm": 12.0} | options
    return explain(scan() if image is None else image, prompt, **given)


# Maps


def test_every_output_lies_exactly_where_an_oblique_flipped_anisotropic_input_lies() -> None:
    image = scan((1.7, 2.3, 4.1), OBLIQUE, (1,))
    result = run(image, model=Network(grid_mm=2.5), region="guided", window_mm=10.0, stride_mm=5.0)
    for name, output in (
        ("saliency", result.saliency),
        ("region", result.region.mask),
        ("segmentation", result.segmentation),
        ("prediction", result.prediction),
    ):
        assert geometry(output) == geometry(image), name
    assert result.saliency.GetPixelID() == sitk.sitkFloat32
    assert result.prediction.GetPixelID() == result.region.mask.GetPixelID() == sitk.sitkUInt8
    found, truth = values(result.prediction) != 0, values(image) == 100
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85
    assert values(result.region.mask)[truth].all()
    saliency = values(result.saliency)
    assert saliency[truth].mean() > 3 * saliency[~truth].mean() > 0


def test_saliency_peaks_where_the_network_depends_on() -> None:
    # All of the liver hangs on a corner of the body away from it.
    corner = (slice(14, 18), slice(13, 17), slice(11, 15))
    network = Network(window=None, landmark=corner)
    result = run(model=network, window_mm=12.0, stride_mm=6.0)
    saliency = values(result.saliency)
    box = corner[::-1]
    peak = np.unravel_index(saliency.argmax(), saliency.shape)
    assert all(s.start <= p < s.stop for s, p in zip(box, peak, strict=True))
    assert saliency[box].mean() > 2 * saliency[BOXES[1]].mean() > 0
    assert result.measurements["effect_inside_target"] < 0.5


def by_hand(image: sitk.Image, window: int, stride: int, spacing: float) -> np.ndarray:
    """Saliency (z, y, x) for the liver and the soft Dice, written out for the pointwise network on the input's grid."""
    x = values(image).astype(float) / 100

    def liver(intensity: np.ndarray) -> np.ndarray:
        logits = [np.zeros_like(intensity), *(4 - 8 * np.abs(intensity - n) for n in (1, 2, 3))]
        return np.asarray(softmax(np.stack(logits), axis=0)[1])

    truth = x == 1
    positions = spacing * np.argwhere(np.ones_like(truth)).reshape(*truth.shape, 3)
    distances = np.linalg.norm(positions[..., None, :] - positions[truth], axis=-1).min(-1)
    scored = distances <= pipeline.RIM_MM

    def dice(p: np.ndarray) -> float:
        return float(2 * p[truth].sum() / (p[scored].sum() + truth.sum()))

    lost, count = np.zeros(x.shape), np.zeros(x.shape)
    for corner in itertools.product(*(range(0, n - window + stride, stride) for n in x.shape)):
        box = tuple(slice(c, c + window) for c in corner)
        changed = x.copy()
        changed[box] = x.min()
        lost[box] += dice(liver(x)) - dice(liver(changed))
        count[box] += 1
    return lost / count


def test_saliency_is_what_is_worked_out_by_hand() -> None:
    image = scan()[4:12, 4:12, 4:12]
    result = run(image, window_mm=12.0, stride_mm=6.0, exhaustive=True)
    expected = by_hand(image, window=4, stride=2, spacing=3.0)
    assert expected.max() > 0.05
    probed = values(result.saliency) != 0  # the lowest values of the corner are taken for air
    assert probed.mean() > 0.8
    assert np.allclose(values(result.saliency)[probed], expected[probed], atol=1e-5)
    assert result.measurements["largest_score_lost"] == pytest.approx(expected.max(), abs=1e-5)


def test_equal_seeds_give_equal_maps_and_other_seeds_the_same_within_rounding() -> None:
    first, again, other = (values(run(seed=seed).saliency) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert np.allclose(first, other, atol=1e-6)
    assert first.max() > 0.05


def test_guided_asks_less_than_whole_and_gets_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}

    class Recording(Scorer):
        def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
            listed = list(perturbations)
            for batch in super().lost(listed):
                seen.update({str(listed[n].box): value for n, value in batch})
                yield batch

    monkeypatch.setattr(setting, "Scorer", Recording)
    guided = run(region="guided", window_mm=12.0, stride_mm=6.0)
    few = dict(seen)
    seen.clear()
    whole = run(window_mm=12.0, stride_mm=6.0)
    assert 0 < len(few) < len(seen)
    assert guided.measurements["perturbations"] == len(few)
    assert whole.measurements["perturbations"] == len(seen)
    assert {box: seen[box] for box in few} == pytest.approx(few, abs=1e-6)


# Regions


@pytest.mark.parametrize("kind", ["file", "path", "volume", "other grid"])
def test_a_region_is_a_mask_file_or_a_volume(tmp_path: Path, kind: str) -> None:
    image = scan()
    mask = mask_of(image, (slice(4, 8), slice(4, 8), slice(4, 8)))
    path = imaging.write_volume(mask, tmp_path / "region.nrrd")
    mask.SetOrigin((-123.25, 45.75, -67.5 + 5e-4))  # the same grid, rounded
    other = imaging.resample_like(mask, imaging.standard_axial(image, 1.5), "nearest")
    given = {"file": str(path), "path": path, "volume": mask, "other grid": other}[kind]
    result = run(image, region=given, localizer="never loaded")
    assert result.region.source == result.record["region"]["source"] == "file"
    assert np.array_equal(values(result.region.mask), values(mask))
    assert geometry(result.region.mask) == geometry(image)
    assert result.record["models"]["localizer"] is None
    assert not values(result.saliency)[:, :, 20:].any()  # no window that meets the region reaches there
    assert values(result.saliency)[4:8, 4:8, 4:8].all()


def test_the_whole_volume_is_a_region() -> None:
    result = run(localizer="never loaded")
    assert values(result.region.mask).all()
    assert result.record["parameters"]["region"] == "whole"
    assert result.record["region"]["agreement_with_prediction"] is None
    body = grow(imaging.body_mask(scan()), BODY_MARGIN_MM)  # air is not probed
    null = values(result.prediction).sum() / values(body).sum()
    assert result.measurements["effect_inside_target_if_uniform"] == pytest.approx(null, rel=1e-6)
    assert result.measurements["effect_inside_target"] > 2 * null


def test_the_networks_own_prediction_and_a_margin_are_a_region() -> None:
    result = run(region="prediction", localizer="never loaded", margin_mm=4.0)
    drawn = mask_of(scan(), BOXES[1])
    assert np.array_equal(values(result.region.mask), values(grow(drawn, 4.0)))
    assert result.region.source == result.record["parameters"]["region"] == "prediction"
    assert result.record["parameters"]["margin_mm"] == 4.0
    assert result.record["models"]["localizer"] is None
    assert result.region.agreement is not None and result.region.agreement.recall == 1.0


def test_the_prediction_is_all_that_the_network_draws_also_where_the_target_is_a_part_of_it() -> None:
    image = scan()
    part = (slice(5, 8), slice(5, 8), slice(4, 7))
    result = run(image, region="prediction", target=mask_of(image, part), margin_mm=0)
    assert np.array_equal(values(result.region.mask), values(mask_of(image, BOXES[1])))


def test_an_object_that_is_no_localizer_is_refused_before_the_network_runs() -> None:
    network = Network()
    with pytest.raises(InputError, match=r"The localizer given is none .*lacks name, threshold, provenance, locate"):
        run(model=network, localizer=object(), region="guided")
    with pytest.raises(InputError, match="Learned prompts are for a localizer that is named"):
        run(model=network, region="guided", prompts="prompts.safetensors")
    assert network.calls == 0


def test_a_text_to_mask_model_guides_with_a_mask() -> None:
    class TextToMask(Finder):
        def locate(self, image: sitk.Image, *asked: Any) -> sitk.Image:
            return sitk.Cast(image == 100, sitk.sitkUInt8)

    result = run(region="guided", localizer=TextToMask(name="text to mask"), margin_mm=0)
    assert result.region.source == "guided"
    assert np.array_equal(values(result.region.mask), values(mask_of(scan(), BOXES[1])))
    assert result.record["models"]["localizer"]["name"] == "text to mask"


def test_a_region_is_refused_before_the_network_runs(tmp_path: Path) -> None:
    image, network = scan(), Network()
    nothing = imaging.write_volume(mask_of(image, BOXES[1]) * 0, tmp_path / "nothing.nrrd")
    for region, message in (
        ("liver", "The region liver is neither guided, whole, prediction, a box nor the file of a mask"),
        ("nosuch.nii.gz", "no file or folder nosuch"),
        (tmp_path / "nosuch", "no file or folder .*nosuch"),
        (nothing, "is empty"),
        (mask_of(image, BOXES[1]) * 0, "mask of the region has no voxel inside the volume"),
        (image[:, :, 3], "The region is no mask: give a 3D volume"),
        (sitk.Compose(image, image), "The region is no mask: give a 3D volume"),
    ):
        with pytest.raises(InputError, match=message):
            run(image, model=network, region=region)
    assert network.calls == 0


# Targets


def test_a_target_is_another_structure_by_name() -> None:
    finder = Finder(label=1)
    result = run(target="renal, left", region="guided", localizer=finder)
    assert result.target == {"name": "left kidney", "label": 2, "voxels": "predicted"}
    assert [getattr(asked, "name", asked) for asked in finder.asked] == ["liver"]
    assert np.array_equal(values(result.prediction) != 0, values(mask_of(scan(), BOXES[2])) != 0)


@pytest.mark.parametrize("kind", ["file", "volume"])
def test_a_target_is_a_mask_whose_class_the_prompt_says(tmp_path: Path, kind: str) -> None:
    image = scan()
    part = (slice(5, 8), slice(5, 8), slice(4, 7))
    mask = mask_of(image, part)
    mask.SetOrigin((-123.25, 45.75, -67.5 + 5e-4))  # the same grid, rounded
    given = mask if kind == "volume" else str(imaging.write_volume(mask, tmp_path / "target.nii.gz"))
    result = run(image, target=given)
    assert result.target == {"name": "liver", "label": 1, "voxels": "given"}
    assert np.array_equal(values(result.prediction), values(mask))
    assert geometry(result.prediction) == geometry(image)
    assert result.measurements["target_volume_ml"] == pytest.approx(27 * 0.027)
    # Only that part is scored, so only windows that meet it lose.
    saliency = values(result.saliency)
    assert saliency[part].min() > 0.1
    assert np.abs(saliency[:, 16:]).max() < 1e-6


def test_a_target_that_cannot_be_used_is_refused_in_words(tmp_path: Path) -> None:
    image = scan()
    for target, message in (
        ("pancreas", "does not segment the pancreas; say with --target .*: liver, left kidney, right kidney"),
        ("bright spot", 'The target "bright spot" is neither a file nor a known structure; the network has: liver, '),
        ("background", 'The target "background" is neither'),
        ("nosuch.nrrd", "no file or folder nosuch"),
        (mask_of(image, BOXES[1]) * 0, "mask of the target has no voxel inside the volume"),
        (image[:, :, 3], "The target is no mask: give a 3D volume"),
        (mask_of(image, BOXES[2]), "The network calls nothing liver in the mask of the target"),
        (mask_of(image, BOXES[1]) + 2 * mask_of(image, BOXES[2]), "The mask of the target holds 2 labels"),
    ):
        with pytest.raises(InputError, match=message):
            run(image, target=target)
    with pytest.raises(InputError, match=r'"bright spot" names no structure .*choose a prompt that names the class'):
        run(image, "bright spot", target=mask_of(image, BOXES[1]))


def test_a_file_or_folder_called_liver_does_not_make_liver_a_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liver").write_text("", encoding="utf-8")
    (tmp_path / "left kidney").mkdir()
    assert run(target="liver").target["name"] == "liver"
    assert run(target="left kidney").target["name"] == "left kidney"
    with pytest.raises(InputError, match="is neither a file nor a known structure"):
        run(target="no structure " * 500)  # longer than a path may be


def test_both_kidneys_are_explained_together(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Scorer] = []

    class Recording(Scorer):
        def __post_init__(self) -> None:
            super().__post_init__()
            made.append(self)

    monkeypatch.setattr(setting, "Scorer", Recording)
    image = scan((6.0, 6.0, 6.0))
    result = run(image, "both kidneys", window_mm=None, stride_mm=None)
    assert result.target["label"] == [2, 3]
    assert made[0].target.label == (2, 3)
    both = (values(image) == 200) | (values(image) == 300)
    assert np.array_equal(values(result.prediction) != 0, both)
    saliency = values(result.saliency)
    assert saliency[BOXES[2]].min() > 0.01 < saliency[BOXES[3]].min()
    # The default window is that of the volume of both.
    parameters, volume_ml = result.record["parameters"], both.sum() * 0.216
    assert 0.5 * (1000 * volume_ml) ** (1 / 3) > 16
    assert parameters["window_mm"] == size_for(volume_ml) == pytest.approx(0.5 * (1000 * volume_ml) ** (1 / 3), abs=0.1)
    assert parameters["stride_mm"] == parameters["window_mm"] / 2


def test_words_that_mean_no_structure_need_a_target_and_guide_the_localizer_then() -> None:
    finder = Finder()
    with pytest.raises(InputError, match=r'"bright spot" names no structure .* with --target .*: liver, left kidney'):
        run(prompt="bright spot", localizer=finder)
    result = run(prompt="bright spot", target="liver", region="guided", localizer=finder)
    assert finder.asked == ["bright spot"]
    assert result.target["name"] == "liver"
    assert result.record["prompt"] == "bright spot"


def test_a_class_the_network_lacks_is_refused_with_those_it_has() -> None:
    network = Network()
    with pytest.raises(InputError, match=r"tiny does not segment the pancreas; say with --target .*: liver, left"):
        run(prompt="pancreas", model=network)
    assert network.calls == 0


@pytest.mark.parametrize("region", ["guided", "whole"])
def test_a_structure_that_is_not_there_is_said_to_be_so(region: str) -> None:
    finder = Finder()
    with pytest.raises(InputError, match=r"finds no liver in this volume, so there is nothing to explain: choose"):
        run(scan(structures=(2, 3)), region=region, localizer=finder)
    assert not finder.asked  # not looked for by the localizer either


def test_the_channels_of_a_sigmoid_network_have_the_next_label() -> None:
    labels = {0: "spot Q", 1: "left kidney", 2: "right kidney"}
    image = scan()
    result = run(image, "spot Q", model=Network(labels, "sigmoid"), batch_size=2)
    assert result.target["label"] == 1
    assert result.labels == {1: "spot Q", 2: "left kidney", 3: "right kidney"}
    assert np.array_equal(values(result.segmentation), np.maximum(values(image), 0) // 100)
    assert np.array_equal(values(result.prediction) != 0, values(image) == 100)
    assert values(result.saliency)[BOXES[1]].min() > 0.05


# The default method, and parts of the effect


class WithoutGradients(Network):
    """Its answers carry no graph, as those of an object from elsewhere."""

    @torch.no_grad()
    def logits(self, patches: Tensor) -> Tensor:
        return super().logits(patches)


def test_without_a_method_gradients_tell_organ_and_surroundings_apart() -> None:
    result = explain(scan(), "liver", model=Network(), localizer=Finder(), device="cpu")
    measured = result.measurements
    assert result.record["parameters"]["method"] == "owen-gradients"
    assert measured["credit_of_organ"] == pytest.approx(measured["score_change"], abs=0.02), "it looks at single voxels"
    assert {row["structure"] for row in measured["context_credits"]} == {
        "left kidney",
        "right kidney",
        "not drawn by the network",
        "not told apart",
    }
    assert sum(row["credit"] for row in measured["context_credits"]) == pytest.approx(measured["credit_of_context"])


@pytest.mark.parametrize(
    ("model", "baseline", "reason"),
    [(WithoutGradients, "air", "cannot be differentiated"), (Network, "surroundings", "one baseline for the whole")],
)
def test_where_the_default_cannot_work_places_are_hidden_and_it_is_said(
    model: type[Network], baseline: Any, reason: str
) -> None:
    result = explain(scan(), "liver", model=model(), localizer=Finder(), device="cpu", baseline=baseline)
    assert result.record["parameters"]["method"] == "occlusion"
    assert any("occlusion and not by owen-gradients" in warning and reason in warning for warning in result.warnings)
    with pytest.raises(InputError, match=reason):
        explain(
            scan(), "liver", model=model(), localizer=Finder(), device="cpu", baseline=baseline, method="owen-gradients"
        )


def test_of_a_network_that_looks_at_single_voxels_nothing_is_lost_elsewhere() -> None:
    told: dict[str, Any] = {"model": Network(), "localizer": Finder(), "device": "cpu", "exhaustive": True}
    total, remote, local = (
        explain(scan(), "liver", effect=part, method="occlusion", **told) for part in ("total", "remote", "local")
    )
    assert np.abs(values(total.saliency)).max() > 0.05
    assert np.abs(values(remote.saliency)).max() < 1e-5
    assert values(local.saliency) == pytest.approx(values(total.saliency), abs=1e-5)
    assert remote.record["parameters"]["effect"] == "remote"
    assert explain(scan(), "liver", effect="local", **told).record["parameters"]["method"] == "occlusion"
    with pytest.raises(InputError, match="owen-gradients hides none"):
        explain(scan(), "liver", effect="remote", method="owen-gradients", model=Network(), localizer=Finder())


# Progress, running estimates, cancelling


def test_progress_grows_to_its_end_in_every_stage() -> None:
    seen: list[Progress] = []
    run(region="guided", on_progress=seen.append)
    stages = [stage for stage, _ in itertools.groupby(p.stage for p in seen)]
    assert stages == ["segment", "localize", "explain"]
    for stage in stages:
        part = [p for p in seen if p.stage == stage]
        done = [p.done for p in part]
        assert done == sorted(done)
        assert part[-1].total == done[-1]
        assert all(p.done <= p.total for p in part)
        assert all((p.seconds_left is None) if p.done == 0 else (p.seconds_left or 0) >= 0 for p in part)
        assert part[-1].seconds_left == 0


def test_running_estimates_lie_in_the_inputs_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    image, seen = scan((1.7, 2.3, 4.1), OBLIQUE), []
    assert run(image, on_estimate=seen.append).complete
    assert len(seen) <= 1  # it takes less than two seconds
    seen.clear()
    monkeypatch.setattr(pipeline, "ESTIMATE_EVERY_S", 0)
    run(image, model=Network(grid_mm=3.0), on_estimate=seen.append)
    assert seen
    for estimate in seen:
        assert geometry(estimate) == geometry(image)
        assert estimate.GetPixelID() == sitk.sitkFloat32
        assert np.isfinite(values(estimate)).all()


def test_running_estimates_that_take_long_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[sitk.Image] = []
    told: list[Progress] = []
    monkeypatch.setattr(pipeline, "ESTIMATE_EVERY_S", 0)

    def show(estimate: sitk.Image) -> None:
        shown.append(estimate)
        time.sleep(0.3)

    run(on_estimate=show, on_progress=told.append)
    assert 1 <= len(shown) < sum(p.stage == "explain" for p in told) / 2


def test_an_occlusion_that_is_cancelled_at_one_place_is_the_same_every_time() -> None:
    def partial(seed: int) -> np.ndarray:
        told: list[Progress] = []
        found = run(
            seed=seed, on_progress=told.append, cancelled=lambda: told[-1].stage == "explain" and told[-1].done >= 12
        )
        assert not found.complete
        return values(found.saliency)

    assert np.array_equal(partial(0), partial(1)), "its order is no matter of chance"


def test_the_localizer_gets_the_structure_where_the_prompt_means_one() -> None:
    finder = Finder()
    run(prompt="Livers", localizer=finder, region="guided")
    (asked,) = finder.asked
    assert isinstance(asked, Structure)
    assert asked.name == "liver"


def test_cancelling_before_perturbing_raises() -> None:
    network = Network()
    with pytest.raises(Cancelled):
        run(model=network, cancelled=lambda: True)
    assert network.calls <= 1
    for stage in ("segment", "localize"):
        seen: list[Progress] = []
        with pytest.raises(Cancelled):
            run(
                region="guided",
                on_progress=seen.append,
                cancelled=lambda stage=stage, seen=seen: seen[-1].stage == stage and seen[-1].done == seen[-1].total,
            )
        assert seen[-1].stage == stage


def test_cancelling_before_the_first_score_raises() -> None:
    # With one patch at a time, a window that meets several patches takes several batches.
    seen: list[Progress] = []
    network = Network(window=SlidingWindow((8, 8, 8), 0.5))
    with pytest.raises(Cancelled):
        run(
            model=network,
            batch_size=1,
            on_progress=seen.append,
            cancelled=lambda: seen[-1].stage == "explain" and seen[-1].done == 0,
        )
    assert seen[-1].stage == "explain"


def test_cancelled_gradients_are_not_called_perturbations() -> None:
    seen: list[Progress] = []
    result = explain(
        scan(),
        "liver",
        model=Network(),
        localizer=Finder(),
        method="owen-gradients",
        device="cpu",
        on_progress=seen.append,
        cancelled=lambda: seen[-1].stage == "explain" and seen[-1].done > 3,
    )
    done, planned = result.measurements["perturbations"], result.measurements["perturbations_planned"]
    assert 3 < done < planned and not result.complete
    assert f"Cancelled after {done} of {planned} gradients: the saliency is a rough one." in result.warnings
    assert not any("perturbations" in warning for warning in result.warnings)


def test_cancelling_while_perturbing_gives_what_is_known() -> None:
    seen: list[Progress] = []
    result = run(
        on_progress=seen.append,
        cancelled=lambda: seen[-1].stage == "explain" and seen[-1].done > 3,
        window_mm=12.0,
        stride_mm=6.0,
    )
    done, planned = result.measurements["perturbations"], result.measurements["perturbations_planned"]
    assert 3 < done == seen[-1].done < planned == seen[-1].total
    assert not result.complete and not result.record["complete"]
    said = f"Cancelled after {done} of {planned} perturbations: the saliency is incomplete, and 0 also where nothing "
    assert f"{said}was tried yet; probed.nrrd tells where something was." in result.warnings
    covered = values(result.saliency) != 0
    assert 0 < covered.mean() < 0.9, "what was not tried is not guessed"
    reached, all_of_it = values(result.probed) == 1, values(run(window_mm=12.0, stride_mm=6.0).probed) == 1
    assert not (covered & ~reached).any()
    assert (reached & ~covered).any(), "a voxel that made no difference is known to make none"
    assert 0 < reached.sum() < all_of_it.sum()


def test_cancelling_at_the_last_perturbation_changes_nothing() -> None:
    seen: list[Progress] = []
    result = run(on_progress=seen.append, cancelled=lambda: seen[-1].stage == "explain" and seen[-1].seconds_left == 0)
    assert result.complete and not any("Cancelled" in warning for warning in result.warnings)


# Options and inputs


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("method", "gradient"),
        ("score", "iou"),
        ("baseline", "noise"),
        *[("window_mm", value) for value in (0, -3.0, float("nan"), float("inf"), "wide")],
        *[("stride_mm", value) for value in (0.0, -1, float("nan"), 25.0)],
        *[("batch_size", value) for value in (0, -1, 2.5, True)],
        *[("seed", value) for value in (-1, 0.5, 2**64)],
        ("region", "everywhere"),
        ("device", "gpu"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(option: str, value: Any) -> None:
    network = Network()
    with pytest.raises(InputError) as error:
        run(model=network, **{option: value})
    assert option in str(error.value)
    assert network.calls == 0


def test_numbers_of_numpy_are_numbers() -> None:
    options = {"window_mm": np.float32(24), "stride_mm": np.float64(12), "batch_size": np.int64(4), "seed": np.uint8(0)}
    result = run(**options)
    assert np.array_equal(values(result.saliency), values(run().saliency))
    json.dumps(result.record, allow_nan=False)


def test_a_volume_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(InputError, match="constant"):
        run(scan(structures=()) * 0)
    with pytest.raises(InputError, match="2D"):
        run(scan()[:, :, 3])
    with pytest.raises(InputError, match="no file or folder"):
        run("nosuch.nii.gz")


@pytest.mark.parametrize(
    ("network", "volume", "warns"),
    [
        ("CT", "MR", True),
        ("Computed Tomography", "MR", True),
        ("MRI", "CT", True),
        ("T1 magnetic resonance", "CT", True),
        ("CT", "CT", False),
        ("MRI", "MR", False),
        ("CT, MR", "MR", False),
        ("computed tomography", "CT", False),
        (None, "MR", False),
        ("SPECT", "MR", False),  # says nothing about either
        ("CT", None, False),
    ],
)
def test_a_scan_of_another_modality_than_the_networks_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, network: str | None, volume: str | None, warns: bool
) -> None:
    monkeypatch.setattr("XAICLIPLib.imaging.modality.guess_modality", lambda image: volume)
    result = run(model=Network(modality=network), window_mm=48.0, stride_mm=48.0)
    assert result.record["input"]["modality"] == volume
    expected = f"The network tiny is for {network}, and this volume looks like {volume}"
    assert [w.startswith(expected) for w in result.warnings if "in adults" not in w] == [True] * warns


def test_a_network_for_another_modality_is_warned_of_before_any_work() -> None:
    network, said = Network(modality="CT"), []
    result = run(
        model=network,
        method="occlusion",
        modality="MR",
        on_warning=lambda sentence: said.append((sentence, network.calls)),
        window_mm=48.0,
        stride_mm=48.0,
    )
    told = "The network tiny is for CT, and you say that this volume is MR: do not rely on its segmentation."
    assert said == [(told, 0)]
    assert result.warnings.count(told) == 1


def test_where_nothing_is_found_the_other_modality_is_said() -> None:
    network = Network({0: "background", 1: "liver", 2: "spleen", 3: "stomach", 4: "aorta"}, modality="CT")
    image = scan()
    image = sitk.Cast(image == 100, sitk.sitkFloat32) * 100  # nothing but the liver
    with pytest.raises(InputError) as caught:
        run(image, "aorta", model=network, method="occlusion", modality="MR")
    assert str(caught.value).startswith(
        "The network finds no aorta in this volume, so there is nothing to explain; the network is for CT, and you say "
        "that the volume is MR: choose another structure"
    )
    with pytest.raises(InputError, match="nothing to explain: choose another"):
        run(image, "aorta", model=network, method="occlusion", modality="CT")


def test_the_shipped_localizer_says_on_mr_that_it_is_for_ct() -> None:
    finder, said = Finder(name="anatomy-clip"), []
    options: dict[str, Any] = {"localizer": finder, "region": "guided", "method": "occlusion"}
    options |= {"window_mm": 48.0, "stride_mm": 48.0}
    result = run(modality="MR", model=Network(modality="MR"), on_warning=said.append, **options)
    (sentence,) = said
    assert sentence.startswith("The localizer anatomy-clip is for CT, and you say that this volume is MR: the region")
    assert sentence in result.warnings
    assert not any("localizer" in w for w in run(modality="CT", **options).warnings)


@pytest.mark.parametrize(
    ("faithfulness", "missing"),
    [
        ("curves", "whether it changes under noise was not checked."),
        (
            None,
            "whether it changes under noise, and whether it beats maps that know nothing of the network, was not "
            "checked.",
        ),
    ],
)
def test_a_cancelled_check_says_what_was_not_checked(
    monkeypatch: pytest.MonkeyPatch, faithfulness: Any, missing: str
) -> None:
    assessed = SimpleNamespace(faithfulness=faithfulness, stability=None, key_regions=None)
    monkeypatch.setattr(assessment, "assess_map", lambda *given: assessed)
    progress = Run(None, lambda: True)
    pipeline.check_map(SimpleNamespace(method=None, seed=0), None, None, None, progress)  # type: ignore[arg-type]
    assert progress.warnings == [f"The check of the map was cancelled before its end: {missing}"]


def test_the_caption_of_the_region_claims_nothing_of_the_colours_outside_it() -> None:
    """A cube that meets the region is hidden whole, so that there are colours outside it."""
    result = run(region="guided", method="occlusion", window_mm=24.0, stride_mm=12.0)
    outside = (values(result.probed) != 0) & (values(result.region.mask) == 0)
    assert outside.any()
    assert "outside" not in methods.METHODS["occlusion"].captions.region


def test_the_user_is_not_told_that_the_scan_looks_like_what_he_said() -> None:
    result = run(model=Network(modality="CT"), modality="MR", window_mm=48.0, stride_mm=48.0)
    assert result.record["input"]["modality"] == "MR"
    assert result.warnings[0] == (
        "The network tiny is for CT, and you say that this volume is MR: do not rely on its segmentation."
    )


def test_a_pet_series_is_recorded_as_one_and_is_neither_ct_nor_mr_to_the_localizer(tmp_path: Path) -> None:
    image, finder = scan(), Finder()
    for k, plane in enumerate(values(image)):
        write(tmp_path / f"{k}", plane, (0, 0, 3.0 * k), modality="PT", spacing=(3, 3), intercept=0)
    result = run(tmp_path, model=Network(modality="CT"), localizer=finder, region="guided")
    assert result.record["input"]["modality"] == "PT"
    assert finder.modalities == [None]
    assert "and this volume is PT, as its file says: do not rely on its segmentation." in result.warnings[0]
    result.save(tmp_path / "result")
    assert record.read(tmp_path / "result" / "explanation.json")["input"]["modality"] == "PT"
    assert "PT; " in (result.report(tmp_path / "report.html")["html"]).read_text(encoding="utf-8")


@pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom is not installed")
def test_a_dicom_series_is_answered_in_its_own_study(tmp_path: Path) -> None:
    """The strongest effect lies at the same place in the patient as in the map that stays here."""
    axes = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]])
    series = write_series(tmp_path / "scan", values(scan()).round(), (10, 20, 30), axes, (3, 3, 3))
    result = run(tmp_path / "scan", window_mm=12.0, stride_mm=6.0)
    made = pydicom.dcmread(result.save_dicom(tmp_path / "dicom")["parametric_map"])
    assert (made.StudyInstanceUID, made.FrameOfReferenceUID) == (series.study, series.frame_of_reference)
    frame, row, column = np.unravel_index(made.pixel_array.argmax(), made.pixel_array.shape)
    first = made.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0].ImagePositionPatient
    z, y, x = np.unravel_index(values(result.saliency).argmax(), values(result.saliency).shape)
    there = result.saliency.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
    np.testing.assert_allclose(np.array(first) + axes[:, 0] * 3 * column + axes[:, 1] * 3 * row, there, atol=1e-4)
    assert values(result.saliency).max() > 0
    assert "tiny" in [item.ManufacturerModelName for item in made.ContributingEquipmentSequence]


def test_what_a_header_leaves_to_guess_is_a_warning_of_the_record(tmp_path: Path) -> None:
    path = imaging.write_volume(scan(), tmp_path / "scan.nii")
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # neither qform nor sform
    path.write_bytes(content)
    warnings = run(path, window_mm=48.0, stride_mm=48.0).record["warnings"]
    assert any(w.startswith("The scan does not say how it is oriented (neither sform nor qform)") for w in warnings)
    assert not any(str(tmp_path) in warning for warning in warnings)


@pytest.mark.parametrize("lines", ["left\nkidney", "left \r\n kidney\n", "left\u2028kidney"])
def test_a_prompt_with_line_breaks_is_one_prompt_and_its_error_one_line(lines: str) -> None:
    with pytest.raises(InputError) as error:
        run(prompt=lines.replace("kidney", "toenail"))
    assert "left toenail" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert run(prompt=lines.replace("left", "").replace("kidney", "liver")).record["prompt"] == "liver"


def test_no_error_that_a_user_can_mend_is_of_several_lines() -> None:
    message = str(InputError("The mask a\nb.nii \r\n is\u2028empty."))
    assert message.splitlines() == [message]
    assert message.startswith("The mask a b.nii ") and message.endswith("empty.")


def test_a_region_that_disagrees_with_the_prediction_is_warned_of() -> None:
    result = run(region="guided", localizer=Finder(label=2))
    assert any("Region and prediction disagree" in warning for warning in result.warnings)
    assert result.record["warnings"] == result.warnings


def test_a_region_at_another_place_is_told_at_once_and_the_prediction_is_probed_instead() -> None:
    told: list[str] = []

    def told_before_probing(now: Progress) -> None:
        if now.stage == "explain":
            assert any("the box around what the network draws is the region instead" in sentence for sentence in told)

    finder = Finder(label=2)
    result = run(
        region="guided", localizer=finder, method="occlusion", on_warning=told.append, on_progress=told_before_probing
    )
    assert result.region.source == result.record["parameters"]["region"] == "prediction box"
    assert values(result.region.mask)[BOXES[1]].all() and values(result.saliency)[BOXES[1]].max() > 0.05
    assert result.record["region"]["agreement_with_prediction"]["recall"] == 1
    assert result.record["region"]["localizer_agreement"]["recall"] == 0
    assert set(told) <= set(result.warnings)
    (flag,) = (f for f in result.record["reliability"] if f["name"] == "region disagrees")
    assert flag["raised"] and flag["value"] == 0, "that the two disagree stays known"


def test_where_a_target_is_named_the_prompt_says_where_to_look() -> None:
    result = run(prompt="left kidney", target="liver", region="guided", localizer=Finder(2), method="occlusion")
    assert result.region.source == "guided" and not values(result.region.mask)[BOXES[1]].any()


def test_that_the_scan_is_not_for_the_network_is_told_before_anything_is_hidden() -> None:
    told: list[Any] = []
    options: dict[str, Any] = {"on_progress": told.append, "on_warning": told.append}
    run(model=Network(modality="CT"), modality="MR", method="occlusion", **options)
    said = [isinstance(one, str) and "do not rely on its segmentation" in one for one in told].index(True)
    assert not any(getattr(one, "stage", "") == "explain" for one in told[:said])


# What is written


def png_text(data: bytes) -> bytes:
    """Keywords and text of a PNG, decompressed: all but its pixels."""
    found, at = b"", 8
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        at += 12 + size
        if kind == b"zTXt":
            key, _, packed = body.partition(b"\0")
            body = key + zlib.decompress(packed[1:])
        if kind != b"IDAT":
            found += kind + body
    return found


def contents(path: Path) -> bytes:
    """Bytes of a file, and what they hold compressed."""
    data = path.read_bytes()
    if path.suffix == ".nrrd":
        header, _, voxels = data.partition(b"\n\n")
        return data + (gzip.decompress(voxels) if b"gzip" in header else b"")
    # Not the compressed pixels of a picture, in which any three letters turn up by chance.
    return png_text(data) if path.suffix == ".png" else data


@pytest.mark.parametrize("from_file", [True, False])
def test_nothing_that_is_written_names_the_patient(tmp_path: Path, from_file: bool) -> None:
    image = scan()
    for key, value in (("PatientName", "DOE^JOHN"), ("0010|0010", "DOE^JOHN"), ("StudyDate", "19700102")):
        image.SetMetaData(key, value)
    mask = mask_of(image, (slice(4, 12), slice(4, 12), slice(4, 12)))
    mask.SetMetaData("PatientName", "DOE^JOHN")
    folder = tmp_path / "DOE^JOHN" / "1970-01-02"
    folder.mkdir(parents=True)
    files = {"image": folder / "DOE^JOHN.nrrd", "region": folder / "DOE^JOHN mask.nrrd"}
    sitk.WriteImage(image, str(files["image"]))
    sitk.WriteImage(mask, str(files["region"]))
    assert b"DOE^JOHN" in files["image"].read_bytes()
    given: dict[str, Any] = files if from_file else {"image": image, "region": mask}
    result = run(**given, target=given["region"])
    written = result.save(folder / "result")
    assert {path.name for path in (folder / "result").iterdir()} == {
        *("saliency.nrrd", "probed.nrrd", "region.nrrd", "segmentation.nrrd"),
        *("target.nrrd", "explanation.json", "figure.png"),
    }
    for path in written.values():
        content = contents(path).lower()
        for secret in (b"doe", b"john", b"1970", b"patientname", b"studydate", tmp_path.name.encode().lower()):
            assert secret not in content, (path.name, secret)
    for text in (contents(written["explanation"]), png_text(written["figure"].read_bytes())):
        assert not re.search(rb"\d{4}-\d\d-\d\d|\d\d:\d\d", text)  # dates, times
        assert b"123.25" not in text and b"67.5" not in text  # where the scanner had the patient


def test_save_replaces_what_was_there_and_reads_back(tmp_path: Path) -> None:
    image = scan((1.7, 2.3, 4.1), OBLIQUE)
    result = run(image, model=Network(grid_mm=3.0))
    names = ("saliency.nrrd", "probed.nrrd", "region.nrrd", "segmentation.nrrd", "explanation.json", "figure.png")
    earlier = explain(scan(), "liver", model=Network(), region="whole", device="cpu", method="rise", samples=8)
    earlier.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, "standard_error.nrrd"}
    written = result.save(tmp_path)
    assert {key: path.name for key, path in written.items()} == {name.partition(".")[0]: name for name in names}
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    for key, volume in (
        ("saliency", result.saliency),
        ("probed", result.probed),
        ("region", result.region.mask),
        ("segmentation", result.segmentation),
    ):
        read = sitk.ReadImage(str(written[key]))
        assert imaging.same_geometry(read, image)
        assert read.GetPixelID() == volume.GetPixelID()
        assert np.array_equal(values(read), values(volume))
    record = json.loads(written["explanation"].read_text(encoding="utf-8"))
    assert record.pop("written") == {name: sha256(tmp_path / name) for name in names if name != "explanation.json"}
    assert record == result.record
    assert written["figure"].read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    result = run(window_mm=48.0, stride_mm=48.0)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        result.save(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        result.save(str(tmp_path / "file" / "below"))


def test_a_corrected_prompt_is_said_to_be_one() -> None:
    assert any('"livr"' in w and "understood as liver" in w for w in run(prompt="livr").warnings)
    assert not any("understood" in w for w in run(prompt="liver").warnings)


def test_a_corrected_target_is_said_to_be_one() -> None:
    found = run(prompt="left kidney", target="livr")
    assert any('"livr"' in w and "understood as liver" in w for w in found.warnings)
    assert not any("understood" in w for w in run(prompt="left kidney", target="liver").warnings)


def test_of_structures_the_target_is_always_removed_and_counts_by_what_it_costs() -> None:
    """The prompt's region, about a kidney, does not hold the liver, which is explained."""
    options: dict[str, Any] = {"method": "structures", "margin_mm": 0.0, "device": "cpu"}
    found = explain(scan(), "left kidney", model=Network(), localizer=Finder(2), target="liver", **options)
    rows = {row["structure"]: row for row in found.measurements["structures"]}
    assert "liver" in rows and "left kidney" in rows
    assert "right kidney" in found.measurements["not_removed"]
    assert rows["liver"]["share"] > 0.9
    assert found.measurements["effect_inside_target"] == pytest.approx(rows["liver"]["share"])
    assert found.measurements["effect_inside_target_if_uniform"] == pytest.approx(1 / len(rows))
    (flag,) = (f for f in found.record["reliability"] if f["name"] == "leans outside")
    assert flag["value"] == pytest.approx(1 - rows["liver"]["share"])


def test_a_name_that_is_nearly_known_is_suggested() -> None:
    with pytest.raises(
        InputError, match=r'"livvver" names no structure that is known here \(did you mean liver\?\), so'
    ):
        run(prompt="livvver")
    with pytest.raises(InputError, match=r"nor a known structure \(did you mean liver\?\); the network has"):
        run(target="livvver")


def test_a_speck_is_not_explained_without_a_warning() -> None:
    assert any("Only 0.25 ml of liver" in w and "do not interpret" in w for w in run(scan((1.0, 1.0, 1.0))).warnings)
    assert not any("do not interpret" in w for w in run().warnings)


def test_a_volume_that_no_adult_has_is_warned_of_and_a_part_of_one_is_not() -> None:
    """42 l of "liver" raised nothing."""
    large, small, usual = (run(scan((s, s, s)), method="occlusion", window_mm=8 * s) for s in (40.0, 3.0, 18.0))
    assert large.warnings[0].startswith("The network draws 16.1 l of liver, which has 450 to 5,500 ml in adults")
    assert small.warnings[0].startswith("The network draws 6.8 ml of liver, which has")
    assert not any("in adults" in warning for warning in usual.warnings)
    (flag,) = (f for f in usual.record["reliability"] if f["name"] == "unusual volume")
    assert flag["value"] == usual.measurements["target_volume_ml"] and not flag["raised"]
    cut = run(scan()[BOXES[1][2].start + 1 :, :, :], method="occlusion")
    assert not any("in adults" in warning for warning in cut.warnings)
    given = run(target=mask_of(scan(), (slice(5, 8), slice(5, 8), slice(4, 7))), method="occlusion")
    assert "unusual volume" not in {flag["name"] for flag in given.record["reliability"]}


def test_a_structure_at_the_edge_of_the_scan_is_warned_of() -> None:
    assert not any("edge of the scan" in w for w in run().warnings)
    cut = scan()[BOXES[1][2].start + 1 :, :, :]
    assert any("liver touches the edge of the scan" in w for w in run(cut).warnings)


def test_a_given_region_beside_the_target_is_warned_of() -> None:
    image = scan()
    assert any(
        "0% of the liver lies in the given region" in w for w in run(image, region=mask_of(image, BOXES[2])).warnings
    )
