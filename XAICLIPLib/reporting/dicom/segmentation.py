"""Target, region and what a check found as segments of one binary Segmentation.

References
----------
DICOM PS3.3, A.51 (Segmentation IOD), C.8.20.4 (segment description).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset

from XAICLIPLib.reporting.dicom import codes
from XAICLIPLib.reporting.dicom.study import CREATOR, MANUFACTURER, Study, new_uid
from XAICLIPLib.reporting.figure import PREDICTION, REGION

PART = "#ffb000"
"""Colour of the parts that a check found."""


@dataclass(frozen=True)
class Segment:
    """A mask, what is in it, and who drew it."""

    mask: sitk.Image
    label: str
    terms: codes.SegmentTerms
    model: Mapping[str, Any]
    colour: str


def segments_of(
    record: Mapping[str, Any],
    target: sitk.Image,
    region: sitk.Image | None,
    sufficient: sitk.Image | None = None,
    necessary: sitk.Image | None = None,
) -> list[Segment]:
    """Target and region of an explanation, and the parts that a check found; what is empty is left out."""
    name, models = str(record["target"]["name"]), record["models"]
    drawn = "given" if record["target"]["voxels"] == "given" else "predicted"
    segments = [
        Segment(target, f"{name} ({drawn})", codes.structure_terms(name), models["segmenter"], PREDICTION),
    ]
    if region is not None:
        prompt, drawer = str(record["prompt"]), models.get("localizer") or models["segmenter"]
        segments.append(Segment(region, f'region of "{prompt}"', codes.region_terms(name), drawer, REGION))
    for part, label in ((sufficient, f"suffices for {name}"), (necessary, f"needed for {name}")):
        if part is not None:
            segments.append(Segment(part, label, codes.region_terms(name), models["segmenter"], PART))
    return [segment for segment in segments if (sitk.GetArrayViewFromImage(segment.mask) != 0).any()]


def segmentation(study: Study, segments: list[Segment], *, number: int, description: str) -> hd.seg.Segmentation:
    """Make the object of some segments.

    Raises
    ------
    InputError
        A mask does not lie on the grid of the scan.
    """
    frames = [np.asarray(study.frames.pixels(segment.mask, "mask")) != 0 for segment in segments]
    made = hd.seg.Segmentation(
        source_images=study.stand_ins(),
        pixel_array=np.stack(frames, axis=-1).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_described(place + 1, segment) for place, segment in enumerate(segments)],
        content_description=description[:64],
        content_label="SEGMENTS",
        content_creator_name=CREATOR,
        **study.identity(number, description),
    )
    study.finish(made)
    return made


def _described(number: int, segment: Segment) -> hd.seg.SegmentDescription:
    terms, model = segment.terms, segment.model
    made = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.label.replace("\\", "/")[:64],
        segmented_property_category=terms.category,
        segmented_property_type=terms.type,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=str(model.get("name", "unknown")).replace("\\", "/")[:64],
            family=codes.AI,
            version=str(model.get("version") or "unknown")[:64],
            source=MANUFACTURER,
            parameters={"sha256": str(model.get("sha256") or "unknown")},
        ),
        tracking_uid=new_uid(),
        tracking_id=segment.label.replace("\\", "/")[:64],
        anatomic_regions=None if terms.region is None else [terms.region],
        display_color=hd.color.CIELabColor.from_rgb(*bytes.fromhex(segment.colour[1:])),
    )
    if terms.modifier is not None:
        made.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_item(terms.modifier)]
    if terms.region_modifier is not None:
        made.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [_item(terms.region_modifier)]
    return made


def _item(concept: Dataset) -> Dataset:
    item = Dataset()
    item.update(concept)
    return item
