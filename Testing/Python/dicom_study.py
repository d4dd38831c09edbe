"""A patient's study in DICOM, valid and complete, and an explanation of it with known contents."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from XAICLIPLib import imaging
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.localization.region import Region
from XAICLIPLib.reporting import record
from XAICLIPLib.reporting.saved_explanation import SavedExplanation

SECRETS = ("Doe^Jane", "PID-4711", "19600229", "ACC-0815", "Secret Hospital", "Dr^Who", "SN-007")
"""What names the patient, and the way to the patient, in the headers of the scan."""


def header(study: str) -> Dataset:
    """Patient, study and scanner."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 100"
    made.PatientName, made.PatientID, made.PatientBirthDate = SECRETS[0], SECRETS[1], SECRETS[2]
    made.PatientSex, made.PatientAge = "F", "066Y"
    made.StudyInstanceUID, made.StudyDate, made.StudyTime, made.StudyID = study, "20260102", "101112", "7"
    made.AccessionNumber, made.ReferringPhysicianName = SECRETS[3], SECRETS[5]
    made.StudyDescription = "Abdomen"
    made.Manufacturer, made.ManufacturerModelName, made.InstitutionName = "Maker", "Scanner", SECRETS[4]
    made.DeviceSerialNumber, made.SoftwareVersions = SECRETS[6], "1"
    return made


@dataclass(frozen=True)
class Series:
    """A series on disk.

    Attributes
    ----------
    folder
        Of its files.
    study, series, frame_of_reference
        UIDs.
    instances
        UID of each file, in the order of the slices given.
    """

    folder: Path
    study: str
    series: str
    frame_of_reference: str
    instances: Sequence[str]


def write_series(
    folder: Path,
    values: np.ndarray,
    origin: Sequence[float],
    axes: np.ndarray,
    spacing: Sequence[float],
    *,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
    names_backwards: bool = False,
    enhanced: bool = False,
    frames_backwards: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Series:
    """Write a CT series; voxel ``values[k, j, i]`` lies at ``origin + axes @ (i, j, k) * spacing + k * shift``.

    The columns of ``axes`` are the directions of i (along a row), of j (along a column) and of k, LPS. ``shift`` is
    that of a tilted gantry, per slice. With ``enhanced`` it is one file with many frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame_of_reference = (generate_uid(prefix=None) for _ in range(3))
    positions = [np.asarray(origin) + axes[:, 2] * spacing[2] * k + np.asarray(shift) * k for k in range(len(values))]
    orientation = [float(v) for v in axes[:, :2].T.ravel()]
    stored = (np.asarray(values) + 1024).astype(np.uint16)
    order = list(range(len(values)))[:: -1 if names_backwards else 1]
    instances = [generate_uid(prefix=None) for _ in values]

    def common(kind: str, instance: str) -> Dataset:
        made = header(study)
        made.SOPClassUID, made.SOPInstanceUID = kind, instance
        made.Modality, made.SeriesInstanceUID, made.SeriesNumber = "CT", series, 3
        made.SeriesDescription, made.PatientPosition = "Plain", "HFS"
        made.FrameOfReferenceUID, made.PositionReferenceIndicator = frame_of_reference, None
        made.ContentDate, made.ContentTime = "20260102", "101213"
        made.Rows, made.Columns = values.shape[1:]
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = kind, instance
        return made

    if enhanced:
        made = common(EnhancedCTImageStorage, instances[0])
        made.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        frames = order[::-1] if frames_backwards else order
        made.NumberOfFrames, made.InstanceNumber = len(frames), 1
        shared, measures, plane, transformation = Dataset(), Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        plane.ImageOrientationPatient = [pydicom.valuerep.DSfloat(v, auto_format=True) for v in orientation]
        transformation.RescaleIntercept, transformation.RescaleSlope, transformation.RescaleType = -1024, 1, "HU"
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
        shared.PixelValueTransformationSequence = [transformation]
        made.SharedFunctionalGroupsSequence = [shared]
        made.PerFrameFunctionalGroupsSequence = []
        for k in frames:
            group, place = Dataset(), Dataset()
            place.ImagePositionPatient = [pydicom.valuerep.DSfloat(v, auto_format=True) for v in positions[k]]
            group.PlanePositionSequence = [place]
            made.PerFrameFunctionalGroupsSequence.append(group)
        made.PixelData = stored[frames].tobytes()
        made.save_as(folder / "enhanced.dcm", enforce_file_format=True)
        return Series(folder, study, series, frame_of_reference, instances[:1])
    for number, k in enumerate(order):
        made = common(CTImageStorage, instances[k])
        made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        made.AcquisitionNumber, made.KVP, made.InstanceNumber = 1, 120, number + 1
        made.ImagePositionPatient = [pydicom.valuerep.DSfloat(v, auto_format=True) for v in positions[k]]
        made.ImageOrientationPatient = [pydicom.valuerep.DSfloat(v, auto_format=True) for v in orientation]
        made.PixelSpacing, made.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        made.RescaleIntercept, made.RescaleSlope, made.RescaleType = -1024, 1, "HU"
        made.PixelData = stored[k].tobytes()
        for name, value in (changes or {}).items():
            if value is None:
                del made[name]
            else:
                setattr(made, name, value)
        made.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return Series(folder, study, series, frame_of_reference, instances)


def like(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    """Values (k, j, i) on the grid of an image."""
    made = sitk.GetImageFromArray(values)
    made.CopyInformation(image)
    return made


def explanation_of(
    scan: imaging.Scan,
    saliency: np.ndarray,
    target: np.ndarray,
    region: np.ndarray,
    *,
    structure: str = "left kidney",
    standard_error: np.ndarray | None = None,
    **changes: Any,
) -> Explanation:
    """An explanation of a scan with these contents (k, j, i)."""
    image = scan.image
    mask = like(image, (region != 0).astype(np.uint8))
    parts = {
        "prompt": structure,
        "target": {"name": structure, "label": 1, "voxels": "predicted"},
        "labels": {0: "background", 1: structure},
        "modality": scan.modality,
        "region": Region(mask, "guided", 12.0, 0.1),
        "measurements": {
            "score_unperturbed": 0.875,
            "target_volume_ml": imaging.volume_ml(like(image, (target != 0).astype(np.uint8))),
            "largest_score_lost": float(saliency.max()),
            "effect_inside_target": 0.25,
            "effect_inside_target_if_uniform": 0.125,
            "correlation_with_overlap": 0.5,
            **dict.fromkeys(("perturbations", "patches_computed", "patches_full_inference_would_compute"), 8),
        },
        "models": {
            "segmenter": {"name": "tiny", "version": "0.1.0", "sha256": "ab" * 32},
            "localizer": {"name": "finder", "sha256": "cd" * 32},
        },
        "parameters": {
            "method": "occlusion",
            "described": "occlusion, window 20 mm, stride 10 mm",
            "region": "guided",
            "score": "soft dice",
            "effect": "total",
            "baseline": "air",
            "device": "cpu",
        },
        "timings": {"explain": 1.0},
        "warnings": [],
        "complete": True,
    } | changes
    return Explanation(
        image=image,
        saliency=like(image, saliency.astype(np.float32)),
        region=parts["region"],
        segmentation=like(image, (target != 0).astype(np.uint8)),
        probed=like(image, np.ones_like(target, np.uint8)),
        prediction=like(image, (target != 0).astype(np.uint8)),
        target=parts["target"],
        labels=parts["labels"],
        measurements=parts["measurements"],
        record=record.build(image=image, **parts),
        complete=parts["complete"],
        standard_error=None if standard_error is None else like(image, standard_error.astype(np.float32)),
        source=scan.source,
    )


def save_quickly(explained: Explanation, folder: Path, anonymous: bool = False) -> dict[str, Path]:
    """As `Explanation.save_dicom`, with a plain picture in the place of the figure, which takes a while to draw."""
    from XAICLIPLib.reporting.dicom import saving

    assert explained.source is not None
    file = io.BytesIO()
    Image.new("RGB", (320, 240), (10, 90, 200)).save(file, "PNG")
    saved = SavedExplanation(
        explained.record,
        explained.saliency,
        explained.prediction,
        explained.region.mask,
        file.getvalue(),
        {},
        explained.standard_error,
        explained.sufficient,
        explained.necessary,
    )
    return saving.save_objects(saved, None, explained.source, folder, anonymous)
