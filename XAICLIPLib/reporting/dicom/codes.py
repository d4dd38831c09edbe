"""The coded concepts of the objects: DICOM's and SNOMED's where there are such, and ours, which every object declares.

References
----------
DICOM PS3.16: CID 217 (visual explanation), CID 7150 and 7151 (categories and types of segments), CID 100 (procedures).
"""

from __future__ import annotations

from dataclasses import dataclass

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from XAICLIPLib import anatomy
from XAICLIPLib.evaluation.reliability_flag import FlagName

SCHEME = "99XAICLIP"
"""Designator of our own codes: those that begin with 99 are private (PS3.16, 8.2)."""


def _ours(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value=value, scheme_designator=SCHEME, meaning=meaning)


SALIENCY = CodedConcept.from_code(codes.DCM.Saliency)
CLASS_ACTIVATION = CodedConcept.from_code(codes.DCM.GradientWeightedClassActivation)
STANDARD_ERROR = _ours("STANDARD-ERROR", "Standard error of saliency")

NO_UNITS = CodedConcept.from_code(codes.UCUM.NoUnits)
MILLILITRE = CodedConcept(value="ml", scheme_designator="UCUM", meaning="milliliter")
PERCENT = CodedConcept(value="%", scheme_designator="UCUM", meaning="Percent")

VOLUME = CodedConcept.from_code(codes.SCT.Volume)
SCORE = _ours("SCORE", "Score of the target on the whole scan")
LARGEST_LOSS = _ours("LARGEST-LOSS", "Largest score lost")
INSIDE = _ours("INSIDE", "Share of the effect inside the target")
INSIDE_BY_CHANCE = _ours("INSIDE-CHANCE", "Share of the effect inside the target if uniform")
OVERLAP = _ours("OVERLAP", "Correlation of score lost with target hidden")
CREDIT = {
    "credit_of_organ": _ours("CREDIT-ORGAN", "Score owed to the target itself"),
    "credit_of_context": _ours("CREDIT-CONTEXT", "Score owed to what lies around the target"),
    "organ_alone": _ours("ORGAN-ALONE", "Score of the target shown alone"),
    "context_alone": _ours("CONTEXT-ALONE", "Score of the scan without the target"),
}
LEAD = {
    "deletion": _ours("LEAD-DELETION", "Faithfulness: lead in deletion over controls"),
    "insertion": _ours("LEAD-INSERTION", "Faithfulness: lead in insertion over controls"),
}
SENSITIVITY = _ours("SENSITIVITY", "Change of the map under noise in the scan")
COMPLETE = _ours("COMPLETE", "Computation was completed")

FLAGS: dict[FlagName, CodedConcept] = {
    "answers by chance": _ours("CHANCE", "Warning: network answers by chance"),
    "answers the same": _ours("SAME", "Warning: network answers the same"),
    "unfamiliar modality": _ours("MODALITY", "Warning: unfamiliar modality"),
    "unfamiliar intensities": _ours("INTENSITIES", "Warning: unfamiliar intensities"),
    "unfamiliar spacing": _ours("SPACING", "Warning: unfamiliar spacing"),
    "mostly padding": _ours("PADDING", "Warning: mostly padding"),
    "unusual volume": _ours("VOLUME", "Warning: volume is unusual for an adult"),
    "region disagrees": _ours("REGION", "Warning: region and drawing disagree"),
    "like the null": _ours("LIKE-NULL", "Warning: map no better than chance"),
    "no more than the outline": _ours("OUTLINE", "Warning: map says no more than the outline"),
    "not converged": _ours("NOT-CONVERGED", "Warning: map has not settled"),
    "unstable": _ours("UNSTABLE", "Warning: map changes with noise in the scan"),
    "leans outside": _ours("LEANS-OUTSIDE", "Warning: effect lies outside the target"),
}
"""Of each reliability check: whether it raised its warning."""

YES, NO = CodedConcept.from_code(codes.SCT.Yes), CodedConcept.from_code(codes.SCT.No)
COMMENT = CodedConcept.from_code(codes.DCM.Comment)
AI = CodedConcept.from_code(codes.DCM.ArtificialIntelligence)
PROCESSING = CodedConcept.from_code(codes.DCM.ProcessingEquipment)
REPORT = CodedConcept(value="18748-4", scheme_designator="LN", meaning="Diagnostic imaging report")

_ANATOMICAL = CodedConcept.from_code(codes.SCT.AnatomicalStructure)
_SPATIAL = CodedConcept.from_code(codes.SCT.SpatialAndRelationalConcept)
_SELECTED = CodedConcept.from_code(codes.DCM.SelectedRegion)
_FORMER_ANATOMICAL = "123037004"
"""What CID 7150 called an anatomical structure in earlier editions, and 3D Slicer's terminologies still do."""


def coding_schemes() -> list[CodingSchemeIdentificationItem]:
    """The declaration of our own scheme, for every object."""
    return [
        CodingSchemeIdentificationItem(
            designator=SCHEME,
            name="Codes of XAI-CLIP, research software",
            responsible_organization="XAI-CLIP, https://github.com/xaiclip/SlicerXAICLIP",
        )
    ]


def procedure(modality: str | None) -> CodedConcept:
    """What was done to get the scan."""
    known = {"CT": codes.LN.CTUnspecifiedBodyRegion, "MR": codes.cid100.MRIUnspecifiedBodyRegion}
    return CodedConcept.from_code(known.get(modality or "", codes.SCT.ImagingProcedure))


@dataclass(frozen=True)
class SegmentTerms:
    """Category and type of a segment, the laterality of the type, and where it lies, with the laterality of that."""

    category: CodedConcept
    type: CodedConcept
    modifier: CodedConcept | None = None
    region: CodedConcept | None = None
    region_modifier: CodedConcept | None = None


def structure_terms(name: str) -> SegmentTerms:
    """The terms of a structure by its name: generic ones where the vocabulary has no code for it."""
    structure = anatomy.resolve(name)
    if structure is None or structure.snomed is None:
        return SegmentTerms(_ANATOMICAL, _ANATOMICAL)
    category = _ANATOMICAL if structure.category.value == _FORMER_ANATOMICAL else _concept(structure.category)
    side = _concept(structure.modifier)
    region = _concept(structure.region)
    assert category is not None
    return SegmentTerms(
        category,
        CodedConcept(structure.snomed.value, structure.snomed.scheme, structure.snomed.meaning),
        side if region is None else None,
        region,
        None if region is None else side,
    )


def region_terms(name: str) -> SegmentTerms:
    """The terms of the region that was searched for a structure."""
    structure = structure_terms(name)
    lies_in = None if structure.type.value == _ANATOMICAL.value else structure.type
    return SegmentTerms(_SPATIAL, _SELECTED, region=lies_in, region_modifier=structure.modifier if lies_in else None)


def _concept(code: anatomy.Code | None) -> CodedConcept | None:
    return None if code is None else CodedConcept(code.value, code.scheme, code.meaning)
