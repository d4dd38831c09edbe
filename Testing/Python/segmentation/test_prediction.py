"""What a network says about a volume, and its label map in the volume's geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.segmentation.decision import Decision
from XAICLIPLib.segmentation.prediction import Prediction, label_values, predict
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling

CPU = torch.device("cpu")
OBLIQUE = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix()
FLIPPED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


@dataclass
class Network:
    """Tells two structures apart by intensity, 1 and 2, smoothed within the patch, at a spacing of its own."""

    grid_mm: float = 2.0
    activation: Activation = "softmax"
    labels: Mapping[int, str] = field(default_factory=lambda: {0: "background", 1: "liver", 2: "spleen"})
    inputs: tuple[str, ...] = ("image",)
    window: SlidingWindow | None = field(default_factory=lambda: SlidingWindow((8, 8, 8), 0.5, "gaussian"))
    name: str = "tiny"
    modality: str | None = "CT"
    provenance: Mapping[str, str] = field(default_factory=dict)

    def prepare(self, image: sitk.Image) -> Prepared:
        small = imaging.standard_axial(image, self.grid_mm)
        array = np.ascontiguousarray(sitk.GetArrayFromImage(small).transpose(2, 1, 0))
        return Prepared(torch.from_numpy(array)[None], imaging.ras_affine(small))

    def logits(self, patches: Tensor) -> Tensor:
        x = torch.nn.functional.avg_pool3d(patches, 3, 1, 1)[:, 0]
        return torch.stack([-2 * x, -(2 * (x - 1).abs()), 2 * x - 3], 1)


def grid(spacing: tuple[float, ...], direction: tuple[float, ...]) -> sitk.Image:
    image = sitk.Image((34, 30, 26), sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    half = np.reshape(direction, (3, 3)) @ (np.array(spacing) * (np.array(image.GetSize()) - 1) / 2)
    image.SetOrigin((np.array((12.0, -30.0, 99.0)) - half).tolist())
    return image


def ball(image: sitk.Image, radius: float = 10.0) -> sitk.Image:
    """1 inside a ball around the middle of `grid`."""
    index = np.stack(np.meshgrid(*map(np.arange, image.GetSize()[::-1]), indexing="ij"), -1)[..., ::-1]
    points = index @ (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()).T + image.GetOrigin()
    inside = sitk.GetImageFromArray(
        (np.linalg.norm(points - (12.0, -30.0, 99.0), axis=-1) <= radius).astype(np.float32)
    )
    inside.CopyInformation(image)
    return inside


def of_logits(logits: Tensor, image: sitk.Image, activation: Activation = "softmax") -> Prediction:
    """A prediction on an image's own grid."""
    volume = torch.zeros((1, *image.GetSize()))
    prepared = Prepared(volume, imaging.ras_affine(image))
    labels = {n: str(n) for n in range(len(logits))}
    tiling = Tiling.of(image.GetSize(), None)
    return Prediction(Network(2.0, activation, labels), prepared, volume, tiling, *decided(logits, activation))


def decided(logits: Tensor, activation: Activation = "softmax") -> tuple[Tensor, dict[int, tuple[int, ...]]]:
    """What a network draws whose logits (K, X, Y, Z) come all at once."""
    decision = Decision(logits.shape[1:], activation, CPU)
    decision.add(tuple(slice(0, n) for n in logits.shape[1:]), logits)
    return decision.finished()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_on_the_networks_grid_the_label_map_is_the_decision(activation: Activation) -> None:
    image = sitk.Image((4, 5, 6), sitk.sitkInt16)
    image.SetDirection(OBLIQUE)
    logits = torch.randn((3, 4, 5, 6), generator=torch.Generator().manual_seed(0))
    prediction = of_logits(logits, image, activation)
    found = prediction.label_map(image)
    labels = sitk.GetArrayFromImage(found).transpose(2, 1, 0)
    for channel in range(3):
        own = logits.numpy()[channel] > 0 if activation == "sigmoid" else logits.numpy().argmax(0) == channel
        assert np.array_equal(np.isin(labels, prediction.values_of([channel])), own)
    assert (labels == 0).any()
    assert (found.GetOrigin(), found.GetDirection()) == (image.GetOrigin(), image.GetDirection())
    assert found.GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_hundreds_of_classes_keep_their_values(activation: Activation) -> None:
    image = sitk.Image((4, 4, 4), sitk.sitkUInt8)
    logits = torch.full((300, 4, 4, 4), -1.0)
    logits[299, :2] = 1.0
    found = sitk.GetArrayFromImage(of_logits(logits, image, activation).label_map(image)).transpose(2, 1, 0)
    assert (found[:2] == (299 if activation == "softmax" else 300)).all()


@pytest.mark.parametrize(
    ("spacing", "direction"),
    [((1.0, 1.1, 1.2), OBLIQUE), ((0.9, 0.9, 1.6), FLIPPED)],
    ids=["oblique", "flipped"],
)
def test_the_label_map_lies_where_the_structure_does_and_is_smooth(
    spacing: tuple[float, ...], direction: tuple[float, ...]
) -> None:
    image = grid(spacing, direction)
    truth = sitk.GetArrayFromImage(ball(image)) > 0
    coarse = ball(imaging.standard_axial(image, 3.0))
    inside = torch.from_numpy(np.ascontiguousarray(sitk.GetArrayFromImage(coarse).transpose(2, 1, 0)))
    logits = torch.stack([0.5 - inside, inside - 0.5])
    prepared = Prepared(inside[None], imaging.ras_affine(coarse))
    prediction = Prediction(Network(), prepared, inside[None], Tiling.of(inside.shape, None), *decided(logits))
    found = prediction.label_map(image)
    stairs = sitk.GetArrayFromImage(imaging.resample_like(coarse, image, "nearest")) > 0
    assert imaging.same_geometry(found, image, 1e-9)
    assert dice(sitk.GetArrayFromImage(found) > 0, truth) > 0.9
    assert dice(sitk.GetArrayFromImage(found) > 0, truth) > dice(stairs, truth) + 0.01


@pytest.mark.parametrize("direction", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
def test_predicting_is_monais_sliding_window(direction: tuple[float, ...]) -> None:
    image = ball(grid((1.0, 1.1, 1.2), direction))
    network, told = Network(), []
    found = predict(network, image, CPU, batch_size=3, advance=lambda done, total: told.append((done, total)))
    with torch.no_grad():
        expected = sliding_window_inference(
            found.prepared.tensor[None], (8, 8, 8), 3, network.logits, overlap=0.5, mode="gaussian"
        )[0]
    assert torch.equal(found.decision, expected.argmax(0).to(torch.uint8))
    total = len(found.tiling.patches)
    assert told == [(min(done, total), total) for done in range(3, total + 3, 3)]
    label_map = sitk.GetArrayFromImage(found.label_map(image))
    assert dice(label_map == 1, sitk.GetArrayFromImage(image) > 0) > 0.85


def test_what_the_network_does_not_see_is_background() -> None:
    image = grid((1.0, 1.0, 1.0), FLIPPED)
    part = image[10:20, 10:20, 10:20]
    logits = torch.stack([torch.zeros(10, 10, 10), torch.ones(10, 10, 10)])
    found = sitk.GetArrayFromImage(of_logits(logits, part).label_map(image))
    assert found.sum() == 1000
    assert (found[10:20, 10:20, 10:20] == 1).all()


def test_labels_that_touch_leave_no_gap_in_the_label_map() -> None:
    image = grid((1.0, 1.0, 1.0), OBLIQUE)
    coarse = imaging.standard_axial(image, 2.0)
    logits = torch.full((3, *coarse.GetSize()), -1.0)
    middle = coarse.GetSize()[0] // 2
    logits[1, :middle] = logits[2, middle:] = 1.0
    prepared = Prepared(logits[:1], imaging.ras_affine(coarse))
    tiling = Tiling.of(coarse.GetSize(), None)
    prediction = Prediction(Network(), prepared, logits[:1], tiling, *decided(logits))
    assert set(np.unique(sitk.GetArrayFromImage(prediction.label_map(image)))) == {1, 2}


def test_the_values_of_sigmoid_channels_start_at_one() -> None:
    assert label_values(Network()) == {0: 0, 1: 1, 2: 2}
    assert label_values(Network(activation="sigmoid", labels={0: "a", 2: "b"})) == {0: 1, 2: 3}
