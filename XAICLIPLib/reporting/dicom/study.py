"""What all objects share: patient and study of the scan, the equipment, and the references to its images.

`highdicom` takes references from the headers of the source images. It is given stand-ins, a single-frame image for each
slice, and what they stand for is put in their place afterwards: so the slices may be files or frames, of one series or
of a series each.
"""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import STR_VR, PersonName, validate_value

from XAICLIPLib import __version__
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.dicom.slices import values_unheard
from XAICLIPLib.imaging.dicom.source import DicomSource
from XAICLIPLib.reporting.dicom import codes
from XAICLIPLib.reporting.dicom.frames import Frames, put_in_order

MANUFACTURER = "XAI-CLIP"
MODEL = "XAI-CLIP explanation"
CREATOR = "XAI-CLIP^"
FIRST_SERIES_NUMBER = 9001
"""Of the objects' series, far from those of scanners."""

NEEDED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""Attributes that must be there, and may be empty."""

_GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028)
"""Groups of the header with what tells of patient, study, equipment and compression."""

_ANY_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
"""Kind of the stand-ins: that of a CT image, for which `highdicom` asks for nothing more than they have."""


@dataclass(frozen=True, eq=False)
class Study:
    """The study that the objects join.

    Attributes
    ----------
    header
        Attributes of patient, study and scanner; nothing but UIDs where the objects are anonymous.
    frames
        Where the frames of the objects lie.
    record
        What ``explanation.json`` holds.
    written
        When the objects are made.
    """

    header: Dataset = field(repr=False)
    frames: Frames = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)
    written: datetime.datetime

    @classmethod
    def of(cls, source: DicomSource, record: Mapping[str, Any], anonymous: bool) -> Study:
        """Read the header of the first image once more.

        Raises
        ------
        InputError
            It is gone, or another image by now.
        """
        with source.files() as paths:
            header = _header(paths[0], source, anonymous)
        return cls(header, Frames.of(source), record, datetime.datetime.now().replace(microsecond=0))

    @property
    def source(self) -> DicomSource:
        """The slices of the scan."""
        return self.frames.source

    def identity(self, number: int, description: str) -> dict[str, Any]:
        """What `highdicom` is told of an object: a series of its own, new UIDs, and who made it.

        Parameters
        ----------
        number
            Of the object, from 0.
        description
            Of its series.
        """
        return {
            "series_instance_uid": new_uid(),
            "series_number": FIRST_SERIES_NUMBER + number,
            "series_description": description[:64],
            "sop_instance_uid": new_uid(),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": MODEL,
            "software_versions": __version__,
            "device_serial_number": __version__,  # software has no other; of what it ran, `equipment` tells
            "content_date": self.written.date(),
            "content_time": self.written.time(),
            "series_date": self.written.date(),
            "series_time": self.written.time(),
            "specific_character_set": "ISO_IR 192",
            "coding_schemes": codes.coding_schemes(),
            "contributing_equipment": self.equipment(),
        }

    def about(self) -> dict[str, Any]:
        """Patient and study, for classes of `highdicom` that do not take them from a source image."""
        header = self.header
        return {
            "study_instance_uid": self.source.slices[0].study,
            "patient_id": header.PatientID,
            "patient_name": header.PatientName,
            "patient_birth_date": header.PatientBirthDate,
            "patient_sex": header.PatientSex,
            "accession_number": header.AccessionNumber,
            "study_id": header.StudyID,
            "study_date": header.StudyDate,
            "study_time": header.StudyTime,
            "referring_physician_name": header.ReferringPhysicianName,
        }

    def equipment(self) -> list[hd.ContributingEquipment]:
        """The models that contributed: name, version and checksum."""
        models = self.record["models"]
        return [
            hd.ContributingEquipment(
                manufacturer=MANUFACTURER,
                purpose_of_reference=codes.PROCESSING,
                manufacturer_model_name=_long(models[role].get("name", "unknown")),
                software_versions=_long(models[role].get("version") or "unknown"),
                device_serial_number=_long(models[role].get("sha256") or "unknown"),
                contribution_datetime=self.written,
                contribution_description=what,
            )
            for role, what in (("segmenter", "Segmentation network"), ("localizer", "Image-text model"))
            if models.get(role)
        ]

    def stand_ins(self) -> list[Dataset]:
        """An image for each slice, in their order, as `highdicom` takes it as a source image."""
        frames, first = self.frames, self.source.slices[0]
        images = []
        for number in range(frames.source.size[2]):
            image = Dataset()
            if number == 0:
                image.update(self.header)
            image.StudyInstanceUID = first.study
            image.SeriesInstanceUID = _stand_in_uid("series")
            image.SOPClassUID = _ANY_IMAGE
            image.SOPInstanceUID = _stand_in_uid(number)
            image.FrameOfReferenceUID = first.frame_of_reference
            image.PositionReferenceIndicator = self.header.get("PositionReferenceIndicator")
            image.Columns, image.Rows = frames.source.size[:2]
            image.ImagePositionPatient = [_decimal(value) for value in frames.positions[number]]
            image.ImageOrientationPatient = [_decimal(value) for value in frames.orientation]
            image.PixelSpacing = [_decimal(value) for value in frames.source.spacing[1::-1]]
            image.SliceThickness = image.SpacingBetweenSlices = _decimal(frames.source.spacing[2])
            images.append(image)
        return images

    def finish(self, made: Dataset) -> None:
        """Put the images of the scan in the place of the stand-ins, and the frames in the order of the slices."""
        self._refer(made)
        put_in_order(made, self.source.axes[:, 2])

    def _refer(self, made: Dataset) -> None:
        made.SourceImageSequence = self.references()
        made.ReferencedSeriesSequence = self.referenced_series()
        by_stand_in = {_stand_in_uid(number): item for number, item in enumerate(self.source.slices)}
        for frame in made.PerFrameFunctionalGroupsSequence:
            for derivation in frame.get("DerivationImageSequence", []):
                for reference in derivation.SourceImageSequence:
                    item = by_stand_in.get(str(reference.ReferencedSOPInstanceUID))
                    if item is None:
                        continue  # two segments in one slice share the reference, which is right by now
                    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = item.kind, item.instance
                    if item.frame is not None:
                        reference.ReferencedFrameNumber = item.frame + 1
                    if self.source.straightened:
                        reference.SpatialLocationsPreserved = "NO"

    def references(self) -> list[Dataset]:
        """A reference to each image of the scan, with its frames where it has many."""
        return [reference for series in self.referenced_series() for reference in series.ReferencedInstanceSequence]

    def referenced_series(self) -> list[Dataset]:
        """The same by series."""
        by_series: dict[str, dict[str, list[Any]]] = {}
        for item in self.source.slices:
            by_series.setdefault(item.series, {}).setdefault(item.instance, []).append(item)
        listing = []
        for series, instances in by_series.items():
            entry = Dataset()
            entry.SeriesInstanceUID = series
            references = []
            for instance, items in instances.items():
                reference = Dataset()
                reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = items[0].kind, instance
                if items[0].frame is not None:
                    reference.ReferencedFrameNumber = [item.frame + 1 for item in items]
                references.append(reference)
            entry.ReferencedInstanceSequence = references
            listing.append(entry)
        return listing

    def evidence(self) -> list[Dataset]:
        """The images of the scan, as a report names its evidence."""
        images: dict[str, Dataset] = {}
        for item in self.source.slices:
            image = Dataset()
            if not images:
                image.update(self.header)
            image.StudyInstanceUID, image.SeriesInstanceUID = item.study, item.series
            image.SOPClassUID, image.SOPInstanceUID = item.kind, item.instance
            images.setdefault(item.instance, image)
        return list(images.values())


def new_uid() -> str:
    """A UID that nothing else has; it is made of random bits and says nothing of machine or time (PS3.5, B.2)."""
    return str(generate_uid(prefix=None))


def device_uid() -> str:
    """The UID of this version of XAI-CLIP as an observer."""
    name = f"https://github.com/xaiclip/SlicerXAICLIP/{__version__}"
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, name).int}"


def _stand_in_uid(number: int | str) -> str:
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'stand-in {number}').int}"


def _decimal(value: float) -> pydicom.valuerep.DSfloat:
    return pydicom.valuerep.DSfloat(float(value), auto_format=True)


def _long(text: str) -> str:
    """Text for a value of 64 characters."""
    return str(text).replace("\\", "/")[:64]


# --- the header of the scan -------------------------------------------------------------------------------------------


def _header(path: Path, source: DicomSource, anonymous: bool) -> Dataset:
    advice = "give the series that was explained, as it is"
    try:
        with values_unheard():
            read = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            instance = str(read.get("SOPInstanceUID") or "")
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        raise InputError(f"The DICOM series is not there any more, or cannot be read: {advice}.") from error
    if instance != source.slices[0].instance:
        raise InputError(f"The DICOM series was changed since it was read: {advice}.")
    header = Dataset()
    with values_unheard():
        if anonymous:
            _copy(read, header, [pydicom.datadict.tag_for_keyword(name) for name in _COMPRESSION if name in read])
        else:
            tags = read.keys()  # to iterate over the dataset itself would read all values, also damaged ones
            _copy(read, header, filter(lambda tag: tag.group in _GROUPS, tags))
    for name in NEEDED:
        if name not in header:
            setattr(header, name, None if name != "PatientName" else PersonName(""))
    header.SpecificCharacterSet = "ISO_IR 192"
    header.StudyInstanceUID = source.slices[0].study
    header.SOPClassUID, header.SOPInstanceUID = _ANY_IMAGE, _stand_in_uid(0)  # highdicom tells them a log
    return header


_COMPRESSION = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
"""What has to be told of the pixels, and tells nothing of the patient."""


def _copy(read: Dataset, header: Dataset, tags: Iterable[Any]) -> None:
    """Copy values as text that UTF-8 can hold; values that break DICOM's own rules are left out."""
    for tag in map(pydicom.tag.Tag, tags):
        if tag.is_private:
            continue
        try:
            element = read[tag]
            if element.is_empty or element.VR not in pydicom.datadict.dictionary_VR(tag).split(" or "):
                continue
            values = list(element.value) if element.VM > 1 else [element.value]
            if element.VR in STR_VR:
                values = [str(value) for value in values]
            elif element.VR not in ("US", "SS", "UL", "FD", "FL"):
                continue
            if _may_occur(len(values), pydicom.datadict.dictionary_VM(tag)) and all(
                _is_valid(element.keyword, str(element.VR), value) for value in values
            ):
                header.add_new(tag, element.VR, values if len(values) > 1 else values[0])
        except Exception:  # a value that cannot be read or kept; its text must not come into any message
            continue


_BREAKS = frozenset("\t\n\f\r")
"""The control characters that DICOM allows, in long text only (PS3.5, 6.1.3)."""


def _is_valid(name: str, representation: str, value: Any) -> bool:
    """Whether a value of an attribute is one of its value representation; a `ValueError` where pydicom says it is not.

    pydicom checks lengths and the characters of codes, and neither control characters nor what a date is.
    """
    if not isinstance(value, str):
        return True
    validate_value(representation, value, pydicom.config.RAISE)
    controls = {character for character in value if unicodedata.category(character) == "Cc"}
    if controls - (_BREAKS if representation in ("LT", "ST", "UT") else frozenset()):
        return False
    if representation in _PARSED:
        _PARSED[representation](value)
    if representation == "DS" and not math.isfinite(float(value)):
        return False
    return name not in _TERMS or re.fullmatch(_TERMS[name], value) is not None


_TERMS = {"PatientSex": "[MFO]", "LossyImageCompression": "0[01]", "LossyImageCompressionMethod": r"ISO_[0-9_]+"}
"""Codes of which others would end in an error, or could name the patient where nothing must."""

_PARSED: dict[str, Any] = {
    "DA": pydicom.valuerep.DA,  # not a range, as a query may hold
    "TM": pydicom.valuerep.TM,
    "DT": pydicom.valuerep.DT,
    "IS": int,
}


def _may_occur(count: int, multiplicity: str) -> bool:
    """Whether an attribute may have so many values, by the dictionary's "1", "2-3", "1-n" or "2-2n"."""
    least, _, most = multiplicity.partition("-")
    return int(least) <= count and (most.endswith("n") or count <= int(most or least))
