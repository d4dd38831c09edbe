"""How a saliency looks: colours, window, transparency, legend, and the slice views given back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def display(module_path: Any, scene: Any) -> Any:
    from XAICLIPModule.display import saliency_display

    return saliency_display


@pytest.fixture
def saliency(display: Any, volume: Any) -> Any:
    """A function that gives a saliency volume with these values."""
    import slicer

    def make(*values: float) -> Any:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "map")
        node.SetAttribute(display.SALIENCY_ATTRIBUTE, "1")
        array = np.zeros((4, 5, 6), np.float32)
        array.ravel()[: len(values)] = values
        slicer.util.updateVolumeFromArray(node, array)
        display.prepare(node)
        return node

    return make


def alpha(display: Any, node: Any, value: float) -> float:
    """Opacity with which a value is painted, from the table and the window."""
    low, high = (getattr(node.GetScalarVolumeDisplayNode(), f"GetWindowLevel{end}")() for end in ("Min", "Max"))
    rgba = [0.0] * 4
    index = round(np.clip((value - low) / (high - low), 0, 1) * (display.ENTRIES - 1))
    display.colours(node).GetColor(index, rgba)
    return rgba[3]


def test_the_window_is_fixed_and_starts_at_nothing_lost(display: Any, saliency: Any) -> None:
    node = saliency(0.4, 0.2, -0.05)
    view = node.GetScalarVolumeDisplayNode()
    assert (view.GetWindowLevelMin(), view.GetWindowLevelMax()) == (0, pytest.approx(0.4))
    assert not view.GetAutoWindowLevel()


def test_negative_effects_that_matter_get_a_colour_of_their_own(display: Any, saliency: Any) -> None:
    node = saliency(0.4, -0.2)
    view = node.GetScalarVolumeDisplayNode()
    assert view.GetWindowLevelMin() == pytest.approx(-0.4)
    rgba = [0.0] * 4
    display.colours(node).GetColor(0, rgba)
    assert rgba[2] > rgba[0], "negative is blue"
    display.colours(node).GetColor(255, rgba)
    assert rgba[0] > rgba[2], "positive is red"


@pytest.mark.parametrize("values", [(1.0,), (1.0, -1.0)])
def test_what_is_below_the_threshold_is_transparent_in_both_directions(
    display: Any, saliency: Any, values: tuple[float, ...]
) -> None:
    node = saliency(*values)
    display.setThreshold(node, 0.3)
    assert alpha(display, node, 0.0) == 0
    assert alpha(display, node, 0.28) == 0
    assert 0 < alpha(display, node, 0.4) < 1
    assert alpha(display, node, 0.9) == 1
    assert alpha(display, node, -0.9) == (1 if len(values) == 2 else 0)
    display.setThreshold(node, 0.0)
    assert alpha(display, node, 0.0) == 0, "nothing lost is never painted"


def test_another_colour_table_keeps_the_threshold_and_the_own_one_comes_back(
    display: Any, saliency: Any, scene: Any
) -> None:
    node = saliency(1.0)
    own = display.colours(node)
    other = scene.AddNewNodeByClass("vtkMRMLColorTableNode", "other")
    other.SetTypeToGrey()
    display.setThreshold(node, 0.3)
    display.setColours(node, other)
    view = node.GetScalarVolumeDisplayNode()
    assert view.GetApplyThreshold() and view.GetLowerThreshold() == pytest.approx(0.3)
    display.setColours(node, own)
    assert not view.GetApplyThreshold()
    assert alpha(display, node, 0.2) == 0


def test_a_map_of_nothing_is_shown_without_complaint(display: Any, saliency: Any) -> None:
    node = saliency(0.0)
    assert display.window(node) > 0
    assert alpha(display, node, 0.0) == 0


def test_the_legend_of_another_module_stays(display: Any, saliency: Any) -> None:
    import slicer

    dose = saliency(1.0)
    dose.RemoveAttribute(display.SALIENCY_ATTRIBUTE)
    theirs = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(dose)
    display.showLegend(saliency(1.0), True)
    assert theirs.GetVisibility()


def test_one_legend_at_a_time_and_it_says_what_it_measures(display: Any, saliency: Any) -> None:
    first, second = saliency(1.0), saliency(0.5)
    display.showLegend(first, True)
    display.showLegend(second, True)
    assert not display.legend(first).GetVisibility()
    legend = display.legend(second)
    assert legend.GetVisibility() and legend.GetTitleText() == "score lost" and legend.GetLabelFormat() == "%.2f"


def test_the_legend_tells_small_numbers_apart(display: Any, saliency: Any) -> None:
    node = saliency(0.027)
    display.showLegend(node, True)
    assert display.legend(node).GetLabelFormat() == "%.3f"
    display.setWindow(node, 0.5)
    assert display.legend(node).GetLabelFormat() == "%.2f"


@pytest.fixture
def views(module_path: Any) -> Any:
    from XAICLIPModule.display.slice_views import SliceViews

    return SliceViews()


@pytest.fixture
def red(layout_manager: Any) -> Any:
    return layout_manager.sliceWidget("Red").mrmlSliceCompositeNode()


def layers(composite: Any) -> tuple[Any, ...]:
    return (
        composite.GetBackgroundVolumeID(),
        composite.GetForegroundVolumeID(),
        round(composite.GetForegroundOpacity(), 3),
    )


def test_what_lay_over_the_same_scan_comes_back_when_the_overlay_is_hidden(
    saliency: Any, views: Any, volume: Any, scene: Any, red: Any
) -> None:
    node, dose = saliency(1.0), scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "dose")
    red.SetBackgroundVolumeID(volume.GetID())
    red.SetForegroundVolumeID(dose.GetID())
    red.SetForegroundOpacity(0.25)
    views.show(volume, node, 0.6)
    assert views.opacity(node) == pytest.approx(0.6)
    views.show(volume, saliency(0.5), 0.7)  # another map over it: what is below both stays remembered
    views.show(volume, node, 0.7)
    views.hide(node)
    assert layers(red) == (volume.GetID(), dose.GetID(), 0.25)
    assert not views.isShown(node)


def test_no_other_patients_scan_comes_back_when_the_overlay_is_hidden(
    saliency: Any, views: Any, volume: Any, scene: Any, red: Any
) -> None:
    """The case: a run on the first patient, then the second one's scan is loaded, shown and explained."""
    first = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "first patient")
    over_first = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "first patient's other scan")
    red.SetBackgroundVolumeID(first.GetID())
    red.SetForegroundVolumeID(over_first.GetID())
    old, new = saliency(1.0), saliency(0.5)
    views.show(first, old, 0.6)
    views.show(volume, new, 0.6)
    views.hide(new)
    assert layers(red) == (volume.GetID(), None, 0.0)
    # And where the views were changed by hand in between.
    views.show(first, old, 0.6)
    red.SetBackgroundVolumeID(volume.GetID())
    red.SetForegroundVolumeID(None)
    views.show(volume, new, 0.6)
    views.hide(new)
    assert layers(red) == (volume.GetID(), None, 0.0)


def test_what_the_user_shows_meanwhile_is_left_alone(
    saliency: Any, views: Any, volume: Any, scene: Any, red: Any
) -> None:
    node, before = saliency(1.0), views.shown()
    views.show(volume, node, 0.6)
    other = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "other")
    red.SetForegroundVolumeID(other.GetID())
    red.SetForegroundOpacity(0.5)
    for take in (lambda: views.giveBack(before, node), lambda: views.hide(node)):
        take()
        assert layers(red) == (volume.GetID(), other.GetID(), 0.5)


def test_after_a_run_without_a_result_everything_is_as_it_was(
    saliency: Any, views: Any, volume: Any, scene: Any, red: Any
) -> None:
    first = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "first")
    red.SetBackgroundVolumeID(first.GetID())
    old, developing = saliency(1.0), saliency(0.5)
    views.show(first, old, 0.6)
    before = views.shown()
    views.show(volume, developing, 0.4)
    views.giveBack(before, developing)
    assert layers(red) == (first.GetID(), old.GetID(), 0.6)
    views.hide(old)
    assert layers(red) == (first.GetID(), None, 0.0)


def test_what_was_deleted_is_not_given_back(saliency: Any, views: Any, volume: Any, scene: Any, red: Any) -> None:
    node = saliency(1.0)
    before = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "before")
    red.SetBackgroundVolumeID(volume.GetID())
    red.SetForegroundVolumeID(before.GetID())
    shown = views.shown()
    views.show(volume, node, 0.6)
    scene.RemoveNode(before)
    views.giveBack(shown, node)
    assert red.GetForegroundVolumeID() is None
    views.show(volume, node, 0.6)
    views.hide(node)
    assert red.GetForegroundVolumeID() is None
