"""How a saliency volume looks: colours, window, transparency, legend.

Every run has a colour table of its own, because its transparency is that run's threshold. A user may choose any other
table of Slicer instead; then the threshold of the volume's display does what can be done without transparency.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import slicer
from slicer.i18n import tr as _

from XAICLIPModule.live.nodes import numberOf

COLOURS_ROLE = "xaiclipColours"
"""Node reference from a saliency volume to its own colour table."""

SALIENCY_ATTRIBUTE = "XAICLIP.Saliency"
"""Marks the saliency volume of a run, from before it is in the scene: node selectors look at attributes only then."""

SIGN_ATTRIBUTE = "XAICLIP.Signed"
THRESHOLD_ATTRIBUTE = "XAICLIP.Threshold"
WINDOW_ATTRIBUTE = "XAICLIP.Window"
"""The window that was chosen automatically: another one is the user's."""

Scale = Literal["unsigned", "signed"]

# Anchors of matplotlib's inferno and coolwarm (Smith, van der Walt; Moreland 2009), interpolated between.
ANCHORS: dict[Scale, list[tuple[float, float, float]]] = {
    "unsigned": [
        (0.001, 0.000, 0.014),
        (0.129, 0.047, 0.291),
        (0.342, 0.062, 0.429),
        (0.541, 0.135, 0.415),
        (0.736, 0.216, 0.330),
        (0.894, 0.353, 0.194),
        (0.978, 0.558, 0.035),
        (0.975, 0.798, 0.206),
        (0.988, 0.998, 0.645),
    ],
    "signed": [
        (0.230, 0.299, 0.754),
        (0.384, 0.510, 0.918),
        (0.554, 0.690, 0.996),
        (0.724, 0.815, 0.976),
        (0.867, 0.864, 0.863),
        (0.960, 0.767, 0.674),
        (0.957, 0.598, 0.477),
        (0.865, 0.371, 0.296),
        (0.706, 0.016, 0.150),
    ],
}
ENTRIES = 256
RAMP = 0.2
"""Of the scale, over which colours become opaque above the threshold, so that the map has no hard edge."""

THRESHOLD, OPACITY = 0.1, 0.6
SIGNED_FROM = 0.25
"""A map whose negative values reach this share of its largest effect is shown with two colours."""


def scaleOf(low: float, high: float) -> Scale:
    """Whether the negative values of a saliency matter (hiding something helped), or one colour says it all."""
    return "signed" if -low >= SIGNED_FROM * max(high, 1e-12) else "unsigned"


def prepare(saliencyNode: Any, extremes: tuple[float, float] | None = None) -> None:
    """Give a saliency volume its window, colours and threshold, by its smallest and largest value.

    What the user changed meanwhile, while the map is being computed, is kept.
    """
    if extremes is None:
        array = slicer.util.arrayFromVolume(saliencyNode)
        extremes = float(array.min()), float(array.max())
    first = saliencyNode.GetNodeReference(COLOURS_ROLE) is None
    saliencyNode.SetAttribute(SIGN_ATTRIBUTE, scaleOf(*extremes))
    if first:
        saliencyNode.CreateDefaultDisplayNodes()
        saliencyNode.SetAttribute(THRESHOLD_ATTRIBUTE, str(THRESHOLD))
        saliencyNode.GetDisplayNode().SetAndObserveColorNodeID(ownColours(saliencyNode).GetID())
        saliencyNode.GetDisplayNode().SetInterpolate(True)
    automatic = numberOf(saliencyNode, WINDOW_ATTRIBUTE)
    if automatic is None or math.isclose(automatic, window(saliencyNode), rel_tol=1e-5):
        top = max(-extremes[0], extremes[1], 1e-6)
        saliencyNode.SetAttribute(WINDOW_ATTRIBUTE, f"{top:.9g}")
        setWindow(saliencyNode, top)
    setThreshold(saliencyNode, threshold(saliencyNode))


def ownColours(saliencyNode: Any) -> Any:
    """The colour table of a run, made where there is none."""
    node = saliencyNode.GetNodeReference(COLOURS_ROLE)
    if node is None:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLColorTableNode")
        node.UnRegister(None)  # Python holds it from here on
        node.SetName(_("{name} colours").format(name=saliencyNode.GetName()))
        node.SetTypeToUser()
        node.SetNumberOfColors(ENTRIES)
        node.SetAttribute("Category", "XAI-CLIP")
        node.SetHideFromEditors(False)  # hidden colour tables are neither offered nor saved with the scene
        slicer.mrmlScene.AddNode(node)
        saliencyNode.SetNodeReferenceID(COLOURS_ROLE, node.GetID())
    return node


def colours(saliencyNode: Any) -> Any:
    """The colour table that a saliency volume is shown with."""
    return saliencyNode.GetDisplayNode().GetColorNode()


def setColours(saliencyNode: Any, colorNode: Any) -> None:
    """Show a saliency volume with a colour table: its own, or any of Slicer's."""
    saliencyNode.GetDisplayNode().SetAndObserveColorNodeID(colorNode.GetID())
    setThreshold(saliencyNode, threshold(saliencyNode))


def window(saliencyNode: Any) -> float:
    """The score lost at which the colours end."""
    return float(saliencyNode.GetScalarVolumeDisplayNode().GetWindowLevelMax())


def setWindow(saliencyNode: Any, top: float) -> None:
    """Let the colours end at ``top`` (score lost): from 0, or from ``-top`` for a map with two colours."""
    display = saliencyNode.GetScalarVolumeDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(-top if _scale(saliencyNode) == "signed" else 0.0, top)
    shown = legend(saliencyNode)
    if shown is not None:
        shown.SetLabelFormat(labelFormat(top))
    setThreshold(saliencyNode, threshold(saliencyNode))


def threshold(saliencyNode: Any) -> float:
    """Share of the window below which a saliency is transparent."""
    share = numberOf(saliencyNode, THRESHOLD_ATTRIBUTE)
    return THRESHOLD if share is None else min(max(share, 0.0), 1.0)


def setThreshold(saliencyNode: Any, share: float) -> None:
    """Make all that is below ``share`` (0 to 1) of the window transparent, in size: both signs alike."""
    saliencyNode.SetAttribute(THRESHOLD_ATTRIBUTE, f"{share:g}")
    display = saliencyNode.GetScalarVolumeDisplayNode()
    own = saliencyNode.GetNodeReference(COLOURS_ROLE)
    shown = display.GetColorNode()
    if own is not None and (shown is None or shown.GetID() == own.GetID()):
        display.SetApplyThreshold(False)
        _paint(own, _scale(saliencyNode), share)
    else:
        display.SetAutoThreshold(False)
        display.SetLowerThreshold(share * window(saliencyNode))
        display.SetUpperThreshold(float(np.finfo(np.float32).max))
        display.SetApplyThreshold(True)


def _scale(saliencyNode: Any) -> Scale:
    return "signed" if saliencyNode.GetAttribute(SIGN_ATTRIBUTE) == "signed" else "unsigned"


def _paint(colorNode: Any, scale: Scale, share: float) -> None:
    """Fill a colour table whose opacity rises from 0 at the threshold to 1 a ramp above it."""
    at = np.linspace(0, 1, ENTRIES)
    anchors = np.array(ANCHORS[scale])
    rgb = np.stack([np.interp(at, np.linspace(0, 1, len(anchors)), anchors[:, c]) for c in range(3)], axis=1)
    effect = np.abs(2 * at - 1) if scale == "signed" else at
    alpha = np.clip((effect - share) / RAMP, 0, 1)
    alpha[effect < max(share, 1.5 / ENTRIES)] = 0  # nothing lost is never painted
    with slicer.util.NodeModify(colorNode):
        for index, ((r, g, b), a) in enumerate(zip(rgb, alpha, strict=True)):
            colorNode.SetColor(index, f"{index}", float(r), float(g), float(b), float(a))


# --- legend ---


def legend(saliencyNode: Any) -> Any:
    """The colour legend of a saliency volume, or None."""
    return slicer.modules.colors.logic().GetColorLegendDisplayNode(saliencyNode)


def showLegend(saliencyNode: Any, shown: bool) -> None:
    """Show or hide the colour legend; those of other runs are hidden, since they would lie over each other."""
    if shown:
        for other in slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode"):
            shows = other.GetDisplayableNode()  # a dose, say, keeps its legend
            of_run = shows is not None and shows.GetAttribute(SALIENCY_ATTRIBUTE)
            if of_run and other.GetPrimaryDisplayNode() != saliencyNode.GetDisplayNode():
                other.SetVisibility(False)
    node = legend(saliencyNode)
    if node is None:
        if not shown:
            return
        node = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(saliencyNode)
        node.SetTitleText(_("score lost"))
        node.SetNumberOfLabels(5)
    node.SetLabelFormat(labelFormat(window(saliencyNode)))
    node.SetVisibility(shown)


def labelFormat(top: float) -> str:
    """Format of a legend's numbers that tells them apart: two decimals, and more for a window below 0.1."""
    return f"%.{max(2, math.ceil(-math.log10(top)) + 1)}f"
