"""Networks whose classes overlap: where a class is, is asked of the class, not of the most probable one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from test_explanation import Network, scan, values
from torch import Tensor

from XAICLIPLib.explanation import Explanation
from XAICLIPLib.pipeline import explain
from XAICLIPLib.reporting import saved_explanation
from XAICLIPLib.segmentation.overlap import combined_label_map, values_containing
from XAICLIPLib.segmentation.segmenter import Activation

TUMOUR = {0: "tumor core", 1: "whole tumor", 2: "enhancing tumor"}


@dataclass
class Tumour(Network):
    """Whole tumour from 100 HU, its core from 200, what enhances from 300: the whole is most sure of nearly all."""

    labels: Mapping[int, str] = field(default_factory=lambda: dict(TUMOUR))
    activation: Activation = "sigmoid"
    modality: str | None = None

    def logits(self, patches: Tensor) -> Tensor:
        x = patches[:, 0]
        whole, core, enhancing = (8 * (x - level).clamp(-1, 1) for level in (0.5, 1.5, 2.5))
        return torch.stack([core / 2 + (x > 2.5) * 6, whole, enhancing / 4 + (x > 3.5) * 20], 1)


def head() -> sitk.Image:
    """A whole tumour of 12 × 10 × 8 voxels, in it a core of 9 × 5 × 4, in that 3 × 2 × 2 enhancing ones."""
    image = scan(structures=())
    array = values(image)
    array[4:12, 5:15, 5:17] = 100
    array[6:10, 7:12, 6:15] = 200
    array[7:9, 8:10, 7:10] = 300
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(image)
    return made


CORE, WHOLE, ENHANCING = 180, 960, 12


def run(**options: Any) -> Explanation:
    given: dict[str, Any] = {"region": "prediction", "device": "cpu", "modality": "MR", "margin_mm": 0.0} | options
    return explain(head(), "tumor core", model=Tumour(), **given)


def test_the_region_of_the_prediction_is_the_classs_own(tmp_path: Path) -> None:
    result = run(window_mm=12.0, stride_mm=12.0)
    core = values(head()) >= 200
    assert core.sum() == CORE
    assert np.array_equal(values(result.prediction) == 1, core)
    covered = (values(result.region.mask)[core] == 1).mean()
    assert covered == 1, "by the most probable class it was 0.067"
    assert result.region.agreement is not None and result.region.agreement.recall == 1


def test_the_label_map_keeps_every_class_and_the_record_says_where(tmp_path: Path) -> None:
    result = run(window_mm=12.0, stride_mm=12.0)
    files = result.save(tmp_path)
    record = json.loads(files["explanation"].read_text())
    drawn = sitk.GetArrayFromImage(sitk.ReadImage(str(files["segmentation"])))
    sizes = {
        name: int(np.isin(drawn, [int(n) for n, names in record["labels"].items() if name in names.split(" + ")]).sum())
        for name in TUMOUR.values()
    }
    assert sizes == {"tumor core": CORE, "whole tumor": WHOLE, "enhancing tumor": ENHANCING}
    assert np.array_equal(np.isin(drawn, record["target"]["label"]), values(head()) >= 200), (
        "as Slicer's segment is made"
    )
    assert np.array_equal(values(saved_explanation.read(tmp_path).target) == 1, values(head()) >= 200), (
        "as the report reads it"
    )


def test_the_target_is_removed_whole_and_what_holds_it_is_not_taken_for_outside() -> None:
    result = run(method="structures", region="whole")
    voxel_ml = 0.027
    rows = {row["structure"]: row for row in result.measurements["structures"]}
    assert rows["tumor core"]["volume_ml"] == pytest.approx(CORE * voxel_ml), "a fifteenth by the most probable class"
    assert rows["whole tumor"]["volume_ml"] == pytest.approx(WHOLE * voxel_ml)
    assert rows["enhancing tumor"]["volume_ml"] == pytest.approx(ENHANCING * voxel_ml)
    assert rows["tumor core"]["score_lost"] > 0.7
    assert rows["whole tumor"]["score_lost"] == pytest.approx(rows["tumor core"]["score_lost"], abs=0.02)
    assert 0 < rows["enhancing tumor"]["score_lost"] < 0.2
    assert result.measurements["effect_inside_target"] == pytest.approx(1, abs=0.01)
    lost, image = values(result.saliency), values(head())
    for low, high, name in ((100, 100, "whole tumor"), (200, 200, "tumor core"), (300, 300, "enhancing tumor")):
        assert lost[(image >= low) & (image <= high)] == pytest.approx(rows[name]["score_lost"], abs=1e-5)


@pytest.mark.parametrize("classes", [3, 40, 100])
def test_numbers_tell_every_set_of_classes(classes: int) -> None:
    draws = torch.Generator().manual_seed(classes)
    logits = torch.randn((classes, 6, 5, 4), generator=draws) - (0.5 if classes == 3 else 1.8)
    labels, shared = combined_label_map(logits)
    for channel in range(classes):
        own = [channel + 1, *values_containing(shared, channel)]
        assert torch.equal(torch.isin(labels, torch.tensor(own)), logits[channel] > 0)
    assert all(len(channels) > 1 for channels in shared.values())
    assert len(set(shared.values())) == len(shared) > 0
    assert min(shared) == classes + 1


def test_classes_that_do_not_overlap_keep_their_numbers() -> None:
    logits = torch.full((3, 4, 4, 4), -1.0)
    logits[0, :2] = logits[2, 2:] = 1.0
    labels, shared = combined_label_map(logits)
    assert shared == {}
    assert labels[0, 0, 0] == 1 and labels[3, 0, 0] == 3
