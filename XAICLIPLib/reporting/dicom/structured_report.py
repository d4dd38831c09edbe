"""The measurements as a Structured Report, of DICOM's template for measurements.

References
----------
DICOM PS3.16: TID 1500 (measurement report), TID 1411 (volumetric ROI), TID 4019 (algorithm identification).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import highdicom as hd
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from XAICLIPLib import __version__
from XAICLIPLib.reporting.dicom import codes
from XAICLIPLib.reporting.dicom.study import MANUFACTURER, MODEL, Study, device_uid, new_uid


def structured_report(
    study: Study,
    *,
    maps: list[Dataset],
    segments: hd.seg.Segmentation | None,
    notice: str,
    comments: list[str],
    number: int,
    description: str,
) -> hd.sr.Comprehensive3DSR:
    """Make the report of the measurements, which refers to the map and to the segments.

    Parameters
    ----------
    study
        The study that it joins.
    maps
        The Parametric Maps, the saliency first.
    segments
        The Segmentation; its first segment is what was measured. None where nothing was drawn.
    notice
        What a reader must know, before all else.
    comments
        Sentences for a reader.
    number
        Of the object, from 0.
    description
        Of the series.
    """
    record = study.record
    device = hd.sr.ObserverContext(
        observer_type=CodedConcept("121007", "DCM", "Device"),
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=device_uid(), name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=MODEL
        ),
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.procedure(record["input"]["modality"]),
        imaging_measurements=[_group(study, maps[0], segments, [notice, *comments])],
    )
    referred = [*study.evidence(), *maps, *([] if segments is None else [segments])]
    return hd.sr.Comprehensive3DSR(
        evidence=referred,
        content=content[0],
        is_complete=bool(record["complete"]),
        is_final=True,
        is_verified=False,
        **study.identity(number, description),
    )


def _group(study: Study, saliency: Dataset, segments: hd.seg.Segmentation | None, comments: list[str]) -> Any:
    record = study.record
    name, model = str(record["target"]["name"]), record["models"]["segmenter"]
    terms = codes.structure_terms(name)
    measured: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=new_uid(), identifier=name[:64]),
        "finding_type": terms.type,
        "algorithm_id": hd.sr.AlgorithmIdentification(
            name=str(model.get("name", "unknown")),
            version=str(model.get("version") or "unknown"),
            parameters=[
                f"sha256 {model.get('sha256') or 'unknown'}",
                f"explained by XAI-CLIP {__version__}: {record['parameters']['described']}",
            ],
        ),
        "measurements": _measurements(record, saliency),
        "qualitative_evaluations": _evaluations(record),
    }
    if segments is None:
        group: Any = hd.sr.MeasurementsAndQualitativeEvaluations(**measured)
    else:
        group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=hd.sr.ReferencedSegment(
                sop_class_uid=segments.SOPClassUID,
                sop_instance_uid=segments.SOPInstanceUID,
                segment_number=1,
                source_series=hd.sr.SourceSeriesForSegmentation(study.source.slices[0].series),
            ),
            **measured,
        )
    for comment in comments:  # the template is extensible, and the words belong to what was measured
        group[0].ContentSequence.append(
            hd.sr.TextContentItem(
                name=codes.COMMENT, value=comment, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
            )
        )
    return group


def _measurements(record: Mapping[str, Any], saliency: Dataset) -> list[hd.sr.Measurement]:
    """The numbers that there are, each with its code; those of the map refer to it."""
    measured, faithfulness = record["measurements"], record.get("faithfulness") or {}
    source = hd.sr.SourceImageForMeasurement(
        referenced_sop_class_uid=saliency.SOPClassUID, referenced_sop_instance_uid=saliency.SOPInstanceUID
    )
    lost = None if "credit_of_organ" in measured else measured.get("largest_score_lost")  # credits lose nothing
    rows = [
        (codes.VOLUME, measured.get("target_volume_ml"), codes.MILLILITRE, False),
        (codes.SCORE, measured.get("score_unperturbed"), codes.NO_UNITS, False),
        (codes.LARGEST_LOSS, lost, codes.NO_UNITS, True),
        (codes.INSIDE, measured.get("effect_inside_target"), codes.NO_UNITS, True),
        (codes.INSIDE_BY_CHANCE, measured.get("effect_inside_target_if_uniform"), codes.NO_UNITS, True),
        (codes.OVERLAP, measured.get("correlation_with_overlap"), codes.NO_UNITS, True),
        *((concept, measured.get(key), codes.NO_UNITS, True) for key, concept in codes.CREDIT.items()),
        *(
            (concept, (faithfulness.get("lead") or {}).get(direction), codes.NO_UNITS, True)
            for direction, concept in codes.LEAD.items()
        ),
        (codes.SENSITIVITY, (record.get("stability") or {}).get("max_sensitivity"), codes.NO_UNITS, True),
    ]
    return [
        hd.sr.Measurement(name=name, value=float(value), unit=unit, referenced_images=[source] if of_map else None)
        for name, value, unit, of_map in rows
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def _evaluations(record: Mapping[str, Any]) -> list[hd.sr.QualitativeEvaluation]:
    """Whether the computation was completed, and of each check whether it raised its warning."""
    answers = [(codes.COMPLETE, bool(record["complete"]))]
    answers += [(codes.FLAGS[flag["name"]], bool(flag["raised"])) for flag in record["reliability"]]
    return [hd.sr.QualitativeEvaluation(name=name, value=codes.YES if yes else codes.NO) for name, yes in answers]
