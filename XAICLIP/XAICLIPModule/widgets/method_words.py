"""The library's words for its methods, where they can be translated.

The library knows nothing of Slicer's translations, and what Slicer's tools extract are sentences in calls of ``_``. So
the library's sentences stand here once more, and a test compares them.
"""

from __future__ import annotations

from slicer.i18n import tr as _


def name(method: str) -> str:
    """A method as the panel calls it; one that is not known here, as the library does."""
    return {
        "occlusion": _("Occlusion"),
        "rise": _("RISE"),
        "lime": _("LIME"),
        "structures": _("Structures"),
        "integrated-gradients": _("Integrated gradients"),
        "seg-grad-cam": _("Seg-Grad-CAM"),
        "owen-gradients": _("Owen gradients"),
    }.get(method, method)


def translated(text: str) -> str:
    """A summary, a parameter's name or its explanation, in the user's language where it is one of `sentences`."""
    return _(text)


def sentences() -> tuple[str, ...]:
    """All that the library says of its methods and their parameters."""
    return (
        # occlusion
        _("Hide a cube, place after place: first on a coarse grid, then closely where the score moves."),
        _("Window"),
        _("Edge of the hidden cubes; default: by the size of the structure, 16 to 48."),
        _("Stride"),
        _("Distance from one cube to the next, at most the edge; default: half of it."),
        _("Exhaustive"),
        _("Evaluate every cube, also where a coarse grid already tells enough."),
        _("Tolerance"),
        _("Look no closer when cubes lose what was expected, to this share of the largest effect; 0: every cube."),
        # rise
        _("Hide random smooth patterns, and work out from all of them what each place contributes."),
        _("Cell"),
        _("Size of the pattern's cells; default: as the cubes of occlusion."),
        _("Samples"),
        _("Patterns at most."),
        _("Keep"),
        _("Share of the cells that each pattern leaves visible."),
        _("Estimator"),
        _("How the map is worked out: ridge regression, debiased, or the plain weighted mean of the RISE paper."),
        _("Wanted error"),
        _("Stop when the standard error is this share of the largest effect; 0: use all patterns."),
        # lime
        _("Hide random sets of supervoxels, and fit a linear model of what each contributes."),
        _("Size"),
        _("Edge of a cube as large as a supervoxel; default: as the cubes of occlusion."),
        _("Sets to hide; default: eight for each supervoxel, at least 200."),
        _("Supervoxels"),
        _("How the region is cut into pieces."),
        _("Kernel"),
        _("Weights of the sets: LIME's exponential kernel, or kernel SHAP's."),
        # structures
        _("Remove each structure that the network segments, and the rest of the body, in turn."),
        _("Pairs"),
        _("Also remove every two of this many most important structures together."),
        # owen-gradients
        _("How much of the score is owed to the organ and to its surroundings, and to which places, by gradients."),
        _("Detail"),
        _("Edge of the cube over which a place's credit is summed."),
        _("Steps"),
        _("Points on each path beside the rest of the scan; those without it have half as many."),
        _("Even share"),
        _("Share of the organ's credit that is spread evenly over it: within an organ gradients are noisy."),
        # integrated-gradients
        _("For comparison: gradients of the score along the way from the baseline to the scan."),
        _("Points on the way."),
        # seg-grad-cam
        _("For comparison: feature maps of a layer, weighted by the gradient of the score."),
        _("Layer"),
        _("Name of the layer; default: the deepest convolution."),
    )
