"""A map as a Parametric Map: float32, a frame for each slice of the scan.

References
----------
DICOM PS3.3, A.75 (Parametric Map IOD), C.7.6.16.2.11 (Real World Value Mapping).
"""

from __future__ import annotations

import highdicom as hd
import numpy as np
import SimpleITK as sitk
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from XAICLIPLib import anatomy
from XAICLIPLib.reporting.dicom import codes
from XAICLIPLib.reporting.dicom.study import CREATOR, Study


def parametric_map(
    study: Study,
    image: sitk.Image,
    *,
    number: int,
    label: str,
    quantity: CodedConcept,
    explanation: str,
    description: str,
    colour_range: tuple[float, float],
) -> hd.pm.ParametricMap:
    """Make the object of a map.

    Parameters
    ----------
    study
        The study that it joins.
    image
        The map, on the grid of the scan in any order of its axes.
    number
        Of the object, from 0.
    label
        Of the content, at most 16 capital letters.
    quantity
        What a value measures.
    explanation
        The same in words.
    description
        Of the series.
    colour_range
        The values between which colours should lie.

    Raises
    ------
    InputError
        The map does not lie on the grid of the scan.
    """
    values = np.ascontiguousarray(study.frames.pixels(image), dtype=np.float32)
    low, high = colour_range
    mapping = hd.pm.RealWorldValueMapping(
        lut_label=label,
        lut_explanation=explanation[:64],
        unit=codes.NO_UNITS,
        value_range=(float(values.min()), float(values.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=quantity,
    )
    window = hd.VOILUTTransformation(
        window_center=(low + high) / 2,
        window_width=high - low,
        voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,  # LINEAR knows no width below 1
    )
    made = hd.pm.ParametricMap(
        source_images=study.stand_ins(),
        pixel_array=values,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_description=description[:64],
        content_label=label,
        content_creator_name=CREATOR,
        **study.identity(number, description),
    )
    # dcmqi, and 3D Slicer with it, crashes on a map that does not say what is in its frames.
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_anatomy(str(study.record["target"]["name"]))]
    study.finish(made)
    return made


def _anatomy(name: str) -> Dataset:
    """What the frames are about: the explained structure, and the side that it is on."""
    terms, item = codes.structure_terms(name), Dataset()
    structure = anatomy.resolve(name)
    item.FrameLaterality = {"left": "L", "right": "R"}.get((structure and structure.side) or "", "U")
    region = Dataset()
    region.update(terms.type)
    item.AnatomicRegionSequence = [region]
    return item
