"""What bundles say that they are: what draws no structures is named, and segmentation networks are not refused."""

from __future__ import annotations

from typing import Any

import pytest

from XAICLIPLib.segmentation.bundles.metadata import (
    NoSegmentationError,
    needed_packages,
    other_task,
    output_names,
    refuse_other_tasks,
    takes_pictures,
)

VOLUME = [96, 96, 96]
IMAGE = {"type": "image", "format": "hounsfield", "num_channels": 1, "spatial_shape": VOLUME}


def metadata(output: dict[str, Any], image: dict[str, Any] = IMAGE, **more: Any) -> dict[str, Any]:
    return {"network_data_format": {"inputs": {"image": image}, "outputs": {"pred": output}}, **more}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (metadata({"type": "object", "format": "dict", "spatial_shape": ["n", "n", "n"]}), "a detector"),
        (metadata({"type": "image", "format": "boxes"}), "a detector"),
        (metadata({"type": "probabilities", "format": "classes", "spatial_shape": [1, 4]}), "a classifier"),
        (metadata({"type": "probability", "format": "classification", "spatial_shape": [1, 1]}), "a classifier"),
        (metadata({"type": "image", "format": "labels", "spatial_shape": [1, 4]}), "a classifier"),
        (metadata({"type": "tuples", "format": "points", "spatial_shape": [2, 10]}), "a finder of landmarks"),
        (metadata({"type": "image", "format": "magnitude", "spatial_shape": VOLUME}), "a network that makes images"),
        (metadata({"type": "feature", "format": "image"}, {"type": "noise"}), "a generator of images"),
        (metadata({"type": "image"}, {"type": "tuples", "format": "latent"}), "a generator of images"),
        ({"autoencoder_data_format": {}}, "a generator of images"),
        ({"network_data_format": {"outputs": {"a": {}, "b": {}}}}, "a network of several results at once (a, b)"),
    ],
)
def test_what_does_not_segment_is_named(content: dict[str, Any], kind: str) -> None:
    assert other_task(content) == kind
    with pytest.raises(NoSegmentationError, match=r"^The bundle b is ") as caught:
        refuse_other_tasks(content, "b")
    assert str(caught.value).count(".") == 1
    assert not caught.value.ways, "trust would not help"


@pytest.mark.parametrize(
    "content",
    [
        metadata({"type": "image", "format": "segmentation", "spatial_shape": VOLUME}),
        metadata({"type": "image", "format": "labels", "spatial_shape": VOLUME}),  # of a prostate's two zones
        metadata({"type": "image", "format": "image", "spatial_shape": VOLUME}, name="Spleen segmentation"),
        metadata({}),
        {},
        {"network_data_format": "text"},
        {"network_data_format": {"inputs": [1], "outputs": {"pred": 3}}},
    ],
)
def test_what_may_segment_is_not_refused(content: dict[str, Any]) -> None:
    assert other_task(content) is None
    refuse_other_tasks(content, "b")


def test_single_pictures_are_told_from_volumes() -> None:
    assert takes_pictures(metadata({}, {"spatial_shape": [736, 480]})) == "736 × 480"
    assert takes_pictures(metadata({})) is None
    assert takes_pictures({}) is None


def test_channels_are_named_by_either_key() -> None:
    assert output_names(metadata({"channel_def": {"0": "background", "1": "liver"}})) == {0: "background", 1: "liver"}
    assert output_names(metadata({"label_def": {"0": "background", "1": "liver"}})) == {0: "background", 1: "liver"}
    assert output_names(metadata({})) == {}


def test_packages_are_told_with_their_versions_and_nothing_else_passes_for_one() -> None:
    content = {
        "required_packages_version": {"einops": "0.7.0"},
        "optional_packages_version": {"timm": "0.6.7", "x; rm -rf": "1"},
    }
    assert needed_packages(content) == {"einops": "0.7.0", "timm": "0.6.7"}
    assert needed_packages({"required_packages_version": ["pip install x"]}) == {}
