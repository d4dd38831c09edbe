"""The report as an Encapsulated PDF, for viewers and archives that show documents.

References
----------
DICOM PS3.3, A.45.1 (Encapsulated PDF IOD), C.24 (encapsulated document).
"""

from __future__ import annotations

from highdicom.base import SOPClass
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from XAICLIPLib.reporting.dicom import codes
from XAICLIPLib.reporting.dicom.study import Study


def encapsulated_pdf(study: Study, pdf: bytes, *, title: str, number: int, description: str) -> SOPClass:
    """Make the object of a PDF.

    Parameters
    ----------
    study
        The study that it joins.
    pdf
        The document.
    title
        Of the document.
    number
        Of the object, from 0.
    description
        Of the series.
    """
    identity = study.identity(number, description)
    equipment = identity.pop("contributing_equipment")
    made = SOPClass(
        sop_class_uid=EncapsulatedPDFStorage,
        modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **study.about(),
        **identity,
    )
    made.copy_patient_and_study_information(study.header)
    made.ContributingEquipmentSequence = equipment
    made.ConversionType = "WSD"
    made.AcquisitionDateTime = None  # of the document, which was made on paper nowhere
    made.BurnedInAnnotation = "NO"  # nothing in it names the patient
    made.DocumentTitle = title
    concept = Dataset()
    concept.update(codes.REPORT)
    made.ConceptNameCodeSequence = [concept]
    made.SourceInstanceSequence = study.references()
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocumentLength = len(pdf)
    made.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    return made
