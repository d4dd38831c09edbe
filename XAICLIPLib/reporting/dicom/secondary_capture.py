"""The figure as a Secondary Capture, for viewers that read nothing else; the warning is burnt into its pixels.

References
----------
DICOM PS3.3, A.8.1 (Secondary Capture Image IOD).
"""

from __future__ import annotations

import io

import highdicom as hd
import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.uid import ExplicitVRLittleEndian

from XAICLIPLib.reporting.dicom.study import Study

BAND = 28
"""The height of a picture in heights of the words above and below it."""

AMBER, BLACK = (255, 191, 71), (21, 24, 28)


def with_words(png: bytes, words: str) -> NDArray[np.uint8]:
    """The picture (rows, columns, RGB) with a band above and below it that says something."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    size = max(picture.height // BAND, 12)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
    while size > 6 and font.getlength(words) > 0.96 * picture.width:
        size -= 1
        font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
    band = 2 * size
    sheet = Image.new("RGB", (picture.width, picture.height + 2 * band), BLACK)
    sheet.paste(picture, (0, band))
    drawing = ImageDraw.Draw(sheet)
    for middle in (band / 2, sheet.height - band / 2):
        drawing.text((sheet.width / 2, middle), words, fill=AMBER, font=font, anchor="mm")
    return np.asarray(sheet, dtype=np.uint8)


def secondary_capture(study: Study, png: bytes, *, words: str, number: int, description: str) -> hd.sc.SCImage:
    """Make the object of a picture.

    Parameters
    ----------
    study
        The study that it joins.
    png
        The picture.
    words
        What is burnt into it.
    number
        Of the object, from 0.
    description
        Of the series.
    """
    made = hd.sc.SCImage(
        pixel_array=with_words(png, words),
        photometric_interpretation=hd.PhotometricInterpretationValues.RGB,
        bits_allocated=8,
        coordinate_system=hd.CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **study.about(),
        **study.identity(number, description),
    )
    made.Laterality = ""  # of a body part that is one of a pair; which part was scanned is not known
    made.PatientOrientation = []  # three planes in one picture, each with its letters
    made.copy_patient_and_study_information(study.header)
    made.BurnedInAnnotation = "NO"  # nothing in it names the patient
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.SourceImageSequence = study.references()
    return made
