"""The objects of an explanation: valid, in the study of the scan, with what was measured, and all or none."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_orientations import frame_places
from dicom_study import SECRETS, Series, explanation_of, like, save_quickly, write_series
from PIL import Image

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.reliability_flag import FLAG_NAMES, ReliabilityFlag
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.reporting import output_folder
from XAICLIPLib.reporting.dicom import codes, writer
from XAICLIPLib.reporting.dicom.study import Study
from XAICLIPLib.reporting.report import NOTICE

KINDS = {
    "parametric_map": "1.2.840.10008.5.1.4.1.1.30",
    "standard_error": "1.2.840.10008.5.1.4.1.1.30",
    "segmentation": "1.2.840.10008.5.1.4.1.1.66.4",
    "structured_report": "1.2.840.10008.5.1.4.1.1.88.34",
    "report": "1.2.840.10008.5.1.4.1.1.104.1",
    "figure": "1.2.840.10008.5.1.4.1.1.7",
}
SIZE = (8, 9, 10)
"""Slices, rows, columns."""

AXES = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""A sagittal series whose slices are numbered against the normal of their plane."""

NORMAL = np.cross(AXES[:, 0], AXES[:, 1])

FLAGS = (
    ReliabilityFlag("leans outside", "Most of the effect lies outside.", 0.7, 0.5, True),
    ReliabilityFlag("unfamiliar modality", "The network is for CT.", 0.0, 0.0, False),
)
FAITHFULNESS = {
    "volumes_mm3": [0.0, 1.0],
    "lead": {"deletion": 0.25, "insertion": -0.125},
    "map": {name: {"scores": [1.0, 0.0], "area": 0.5} for name in ("deletion", "insertion")},
    "controls": {},
}


def contents(rng: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A map, a target and a region (k, j, i)."""
    saliency = np.random.default_rng(rng).normal(0, 0.05, SIZE)
    target, region = np.zeros(SIZE), np.zeros(SIZE)
    target[2:5, 3:6, 4:8] = 1
    region[1:7, 2:8, 2:9] = 1
    return saliency, target, region


def series(folder: Path, **options: Any) -> Series:
    values = np.random.default_rng(5).integers(-900, 900, SIZE)
    return write_series(folder, values, (10.5, -20.25, 30), AXES, (0.75, 1.25, 2.5), **options)


def explanation(folder: Path, **changes: Any) -> Explanation:
    saliency, target, region = contents()
    scan = imaging.read_scan(folder)
    return explanation_of(scan, saliency, target, region, standard_error=np.abs(saliency) / 3, **changes)


@dataclass(frozen=True)
class Written:
    series: Series
    explanation: Explanation
    paths: dict[str, Path]

    def object(self, name: str) -> pydicom.Dataset:
        return pydicom.dcmread(self.paths[name])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The objects of an explanation with everything that there may be."""
    folder = tmp_path_factory.mktemp("written")
    scan = series(folder / "scan", names_backwards=True)
    explained = explanation(
        folder / "scan", reliability=FLAGS, faithfulness=FAITHFULNESS, stability={"max_sensitivity": 0.125}
    )
    return Written(scan, explained, explained.save_dicom(folder / "dicom"))


@pytest.fixture(scope="module")
def anonymous(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("anonymous")
    scan = series(folder / "scan")
    explained = explanation(folder / "scan")
    return Written(scan, explained, save_quickly(explained, folder / "dicom", anonymous=True))


# --- valid ------------------------------------------------------------------------------------------------------------


def test_there_are_six_objects_of_their_kinds_in_series_of_their_own(written: Written) -> None:
    objects = {name: written.object(name) for name in written.paths}
    assert {name: str(made.SOPClassUID) for name, made in objects.items()} == KINDS
    assert len({made.SeriesInstanceUID for made in objects.values()}) == len(KINDS)
    assert len({made.SeriesNumber for made in objects.values()}) == len(KINDS)
    assert sorted(path.name for path in written.paths["figure"].parent.iterdir()) == sorted(output_folder.DICOM_FILES)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("who", ["named", "anonymous"])
def test_dciodvfy_finds_no_error(name: str, who: str, written: Written, anonymous: Written) -> None:
    program = Path(sys.executable).with_name("dciodvfy")
    if not program.is_file():
        pytest.skip("dicom3tools, which has dciodvfy, is not installed")
    path = (written if who == "named" else anonymous).paths[name]
    said = subprocess.run([str(program), str(path)], capture_output=True, text=True, check=False).stderr
    assert said.strip(), "dciodvfy says at least what it takes the object for"
    assert [line for line in said.splitlines() if line.startswith(("Error", "Abort"))] == []


def test_dcentvfy_finds_the_objects_in_one_study_with_the_scan(written: Written) -> None:
    program = Path(sys.executable).with_name("dcentvfy")
    if not program.is_file():
        pytest.skip("dicom3tools, which has dcentvfy, is not installed")
    files = [*written.series.folder.iterdir(), *written.paths.values()]
    said = subprocess.run([str(program), *map(str, files)], capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if line.startswith(("Error", "Abort"))] == []


@pytest.mark.parametrize("name", KINDS)
def test_dicom_validator_finds_no_error(name: str, written: Written) -> None:
    """With the standard itself, which dicom-validator downloads to this folder (it needs the network, once)."""
    pytest.importorskip("dicom_validator", reason="dicom-validator is not installed")
    if not any((Path.home() / "dicom-validator").glob("*/docbook/part03.xml")):
        pytest.skip("the DICOM standard is not at ~/dicom-validator: run validate_iods once with a network")
    program = Path(sys.executable).with_name("validate_iods")
    command = [str(program), "--edition", "local", str(written.paths[name])]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


# --- the scan's study -------------------------------------------------------------------------------------------------


def test_the_objects_are_in_the_study_of_the_scan_and_name_its_patient(written: Written) -> None:
    for name in KINDS:
        made = written.object(name)
        assert made.StudyInstanceUID == written.series.study
        assert made.SeriesInstanceUID != written.series.series
        assert (made.PatientName, made.PatientID, made.PatientBirthDate) == SECRETS[:3]
        assert (made.AccessionNumber, made.StudyDate, made.StudyID) == (SECRETS[3], "20260102", "7")
        if name in ("parametric_map", "standard_error", "segmentation"):
            assert made.FrameOfReferenceUID == written.series.frame_of_reference


def test_each_frame_refers_to_the_image_that_lies_where_it_lies(written: Written) -> None:
    slices = {}
    for path in written.series.folder.iterdir():
        image = pydicom.dcmread(path)
        slices[image.SOPInstanceUID] = np.array(image.ImagePositionPatient, float)
    for name in ("parametric_map", "standard_error", "segmentation"):
        made = written.object(name)
        for frame in made.PerFrameFunctionalGroupsSequence:
            reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
            place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            np.testing.assert_allclose(slices[reference.ReferencedSOPInstanceUID], place, atol=1e-6)
            assert reference.SpatialLocationsPreserved == "YES"
        (referenced,) = made.ReferencedSeriesSequence
        assert referenced.SeriesInstanceUID == written.series.series
        assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == set(slices)


def test_frames_go_up_along_the_normal(written: Written) -> None:
    """Some readers look at the first frame alone and step along the normal, and would see a mirror image else."""
    for name in ("parametric_map", "segmentation"):
        heights: dict[int, list[float]] = {}
        for frame in written.object(name).PerFrameFunctionalGroupsSequence:
            segment = frame.get("SegmentIdentificationSequence")
            number = segment[0].ReferencedSegmentNumber if segment else 0
            place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            heights.setdefault(number, []).append(float(place @ NORMAL))
        assert all((np.diff(values) > 0).all() for values in heights.values())


def test_another_run_makes_other_uids(written: Written, tmp_path: Path) -> None:
    again = save_quickly(written.explanation, tmp_path / "dicom")
    for name in KINDS:
        one, other = written.object(name), pydicom.dcmread(again[name])
        assert one.SOPInstanceUID != other.SOPInstanceUID
        assert one.SeriesInstanceUID != other.SeriesInstanceUID


def test_the_network_and_its_checksum_are_among_the_equipment(written: Written) -> None:
    for name in KINDS:
        equipment = written.object(name).ContributingEquipmentSequence
        models = {item.ManufacturerModelName: item.get("DeviceSerialNumber") for item in equipment}
        assert models["tiny"] == "ab" * 32
        assert models["finder"] == "cd" * 32


# --- privacy ----------------------------------------------------------------------------------------------------------


def test_anonymous_objects_hold_nothing_of_the_patient_and_still_refer_to_the_scan(anonymous: Written) -> None:
    for name, path in anonymous.paths.items():
        content = path.read_bytes()
        assert [secret for secret in (*SECRETS, "Abdomen", "20260102") if secret.encode() in content] == []
        made = anonymous.object(name)
        assert made.StudyInstanceUID == anonymous.series.study
        assert not made.PatientName and not made.PatientID
    frames = anonymous.object("parametric_map").PerFrameFunctionalGroupsSequence
    references = {f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for f in frames}
    assert references == set(anonymous.series.instances)


def test_the_named_objects_do_name_the_patient(written: Written) -> None:
    """So that the test above tests something."""
    assert all(SECRETS[1].encode() in path.read_bytes() for path in written.paths.values())


def test_nothing_else_knows_the_scans_identity(written: Written, tmp_path: Path) -> None:
    identity = [*SECRETS, written.series.study, written.series.series, written.series.instances[0]]
    explained = written.explanation
    texts = [repr(explained), repr(explained.source), str(explained.record)]
    for path in explained.save(tmp_path / "plain").values():
        texts.append(path.read_bytes().decode("latin-1"))
    texts.append((written.paths["figure"].parent / output_folder.RECORD).read_text())
    assert [secret for secret in identity if any(secret in text for text in texts)] == []
    assert pickle.loads(pickle.dumps(explained.source)) is None


def test_a_value_that_no_object_can_hold_is_left_out_and_never_told(tmp_path: Path) -> None:
    made = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        series(tmp_path / "scan", changes={"PatientBirthDate": "born 1960", "StudyTime": "noon"})
    finally:
        pydicom.config.settings.writing_validation_mode = made
    paths = save_quickly(explanation(tmp_path / "scan"), tmp_path / "dicom")
    for path in paths.values():
        made = pydicom.dcmread(path)
        assert (made.PatientBirthDate, made.StudyTime, made.PatientID) == ("", "", SECRETS[1])


def test_a_structure_of_any_name_can_be_written_and_a_path_is_none(tmp_path: Path) -> None:
    """A network may name its classes as it likes: control characters ended in an error after all the work."""
    series(tmp_path / "scan")
    explained = explanation(tmp_path / "scan", structure="li\x1b[31mver\\x\ny /home/doe/jane.nii " + "z" * 80)
    paths = save_quickly(explained, tmp_path / "dicom")
    label = pydicom.dcmread(paths["segmentation"]).SegmentSequence[0].SegmentLabel
    assert label.startswith("li/x1b[31mver/x y (a path) zzz") and len(label) == 64
    for path in paths.values():
        assert b"jane" not in path.read_bytes()
        assert str(pydicom.dcmread(path).SeriesDescription).startswith("XAI-CLIP ")


def rewrite(folder: Path, changes: Mapping[tuple[str, str], Any]) -> None:
    """Put elements into all headers of a series, of any value representation and with any value."""
    settings = pydicom.config.settings
    modes = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        for path in folder.iterdir():
            made = pydicom.dcmread(path)
            for (name, representation), value in changes.items():
                tag = pydicom.tag.Tag(name)
                made[tag] = pydicom.DataElement(tag, representation, value)
            made.save_as(path)
    finally:
        settings.reading_validation_mode, settings.writing_validation_mode = modes


@pytest.mark.parametrize(
    "changes",
    [
        {("PatientName", "US"): 5, ("PatientID", "US"): [5, 6], ("ReferringPhysicianName", "US"): 7},
        {("PatientName", "UT"): "Doe", ("PatientID", "LO"): ["a", "b"], ("AccessionNumber", "SH"): "a\nb"},
        {("PatientName", "PN"): "Doe\x1b[31m^Jane\x07", ("PatientSex", "CS"): "X", ("PatientBirthDate", "US"): 7},
        {("PatientSex", "CS"): ["F", "M"], ("ReferringPhysicianName", "PN"): ["a^b", "c^d"]},
        {("StudyDate", "DA"): ["20260102", "20260103"], ("StudyTime", "LO"): "morning"},
        {("StudyDate", "DA"): "20260101-20260102", ("StudyID", "LO"): "some study"},
    ],
)
def test_values_of_the_wrong_kind_or_number_are_left_out(changes: dict[tuple[str, str], Any], tmp_path: Path) -> None:
    """They ended in an error after all the work, or in objects that no archive takes."""
    series(tmp_path / "scan")
    rewrite(tmp_path / "scan", changes)
    paths = save_quickly(explanation(tmp_path / "scan"), tmp_path / "dicom")
    for path in paths.values():
        made = pydicom.dcmread(path)
        assert {name: str(made.get(name) or "") for name, _ in changes} == {name: "" for name, _ in changes}
        assert made.StudyDescription == "Abdomen"


def test_what_is_told_of_compression_is_none_but_its_codes(tmp_path: Path) -> None:
    lossy = {("LossyImageCompression", "CS"): "01", ("LossyImageCompressionRatio", "DS"): ["10", "5"]}
    for method, kept in (("ISO_15444_1", "ISO_15444_1"), ("DOE JANE", None)):
        series(tmp_path / method)
        rewrite(tmp_path / method, lossy | {("LossyImageCompressionMethod", "CS"): method})
        read = Study.of(explanation(tmp_path / method).source, {}, anonymous=True).header
        assert (read.LossyImageCompression, list(read.LossyImageCompressionRatio)) == ("01", [10, 5])
        assert read.get("LossyImageCompressionMethod") == kept


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"])
@pytest.mark.parametrize("value", ["1.2.Doe^Jane", "1." + "2" * 70, ["1.2", "1.3"]])
def test_uids_that_are_none_are_refused_and_neither_told_nor_logged(
    name: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series(tmp_path / "scan")
    rewrite(tmp_path / "scan", {(name, "UI"): value, ("SpecificCharacterSet", "CS"): "DOE"})
    caplog.clear()  # of what the test itself did
    caplog.set_level(0)
    with pytest.raises(InputError, match="UIDs") as refused:
        save_quickly(explanation(tmp_path / "scan"), tmp_path / "dicom", anonymous=True)
    assert not (tmp_path / "dicom").exists()
    assert [word for word in ("Doe", "DOE", "222") if word in f"{refused.value}{caplog.text}"] == []


def test_pydicom_logs_no_value_of_the_header(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series(tmp_path / "scan")
    rewrite(tmp_path / "scan", {("SpecificCharacterSet", "CS"): "DOE", ("ConcatenationUID", "UI"): "1.2.Doe"})
    caplog.clear()
    caplog.set_level(0)
    explained = explanation(tmp_path / "scan")
    for anonymous in (False, True):
        Study.of(explained.source, {}, anonymous)
    assert "doe" not in caplog.text.lower()


def test_names_in_other_alphabets_survive(tmp_path: Path) -> None:
    series(tmp_path / "scan", changes={"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Достоевский^Фёдор"})
    for path in save_quickly(explanation(tmp_path / "scan"), tmp_path / "dicom").values():
        made = pydicom.dcmread(path)
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert str(made.PatientName) == "Достоевский^Фёдор"


# --- what is in them --------------------------------------------------------------------------------------------------


def test_the_maps_have_a_quantity_a_unit_and_the_values(written: Written) -> None:
    for name, image, quantity in (
        ("parametric_map", written.explanation.saliency, ("130404", "DCM", "Saliency")),
        ("standard_error", written.explanation.standard_error, ("STANDARD-ERROR", "99XAICLIP", None)),
    ):
        made = written.object(name)
        shared = made.SharedFunctionalGroupsSequence[0]
        mapping = shared.RealWorldValueMappingSequence[0]
        concept = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
        assert (concept.CodeValue, concept.CodingSchemeDesignator) == quantity[:2]
        unit = mapping.MeasurementUnitsCodeSequence[0]
        assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("1", "UCUM")
        assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
        assert made.pixel_array.dtype == np.float32
        np.testing.assert_array_equal(made.pixel_array, sitk.GetArrayViewFromImage(image))
        low, high = (float(getattr(made.pixel_array, end)()) for end in ("min", "max"))
        assert mapping.DoubleFloatRealWorldValueFirstValueMapped == low
        assert mapping.DoubleFloatRealWorldValueLastValueMapped == high
        window = shared.FrameVOILUTSequence[0]
        assert window.WindowWidth > 0
        assert made.ContentQualification == "RESEARCH"
        (scheme,) = [s for s in made.CodingSchemeIdentificationSequence if s.CodingSchemeDesignator == "99XAICLIP"]
        assert "XAI-CLIP" in scheme.CodingSchemeName


def test_the_colour_range_is_symmetric_where_the_map_has_signs(written: Written) -> None:
    window = written.object("parametric_map").SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
    assert window.WindowCenter == 0
    window = written.object("standard_error").SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
    assert float(window.WindowCenter) == pytest.approx(float(window.WindowWidth) / 2)


def test_the_segments_are_coded_and_automatic(written: Written) -> None:
    made = hd.seg.segread(written.paths["segmentation"])
    target, region = made.SegmentSequence
    kind = target.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodeMeaning) == ("64033007", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert region.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Selected region"
    assert region.AnatomicRegionSequence[0].CodeValue == "64033007"
    for segment, network in ((target, "tiny"), (region, "finder")):
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == network
    for number, image in ((1, written.explanation.prediction), (2, written.explanation.region.mask)):
        volume = made.get_volume(segment_numbers=[number], combine_segments=True)
        assert volume.array.astype(bool).sum() == (sitk.GetArrayViewFromImage(image) != 0).sum()


def test_what_suffices_and_what_is_needed_are_segments_too(tmp_path: Path) -> None:
    series(tmp_path / "scan")
    explained = explanation(tmp_path / "scan")
    masks = {}
    for name, size in (("sufficient", 2), ("necessary", 3)):
        values = np.zeros(SIZE, np.uint8)
        values[1 : 1 + size, 1 : 1 + size, 2 : 2 + size] = 1
        masks[name] = like(explained.image, values)
    paths = save_quickly(dataclasses.replace(explained, **masks), tmp_path / "dicom")
    made = hd.seg.segread(paths["segmentation"])
    assert [segment.SegmentLabel for segment in made.SegmentSequence][2:] == [
        "suffices for left kidney",
        "needed for left kidney",
    ]
    for number, size in ((3, 2), (4, 3)):
        volume = made.get_volume(segment_numbers=[number], combine_segments=True)
        assert (volume.array != 0).sum() == size**3


def test_credits_of_organ_and_context_are_measured_and_the_colours_tell_the_context(tmp_path: Path) -> None:
    series(tmp_path / "scan")
    explained = explanation(tmp_path / "scan")
    measured = {**explained.record["measurements"], "credit_of_organ": 0.625, "credit_of_context": 0.25}
    saliency, target, _ = contents()
    saliency[target > 0] = 5.0
    map_ = like(explained.image, saliency.astype(np.float32))
    record = {**explained.record, "measurements": measured}
    explained = dataclasses.replace(explained, record=record, saliency=map_)
    paths = save_quickly(explained, tmp_path / "dicom")
    window = pydicom.dcmread(paths["parametric_map"]).SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
    assert 0 < window.WindowWidth < 2, "the colours end at what lies around the structure"
    report = hd.sr.srread(paths["structured_report"])
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    values = {m.name.value: m.value for m in group.get_measurements()}
    assert (values["CREDIT-ORGAN"], values["CREDIT-CONTEXT"]) == (0.625, 0.25)


def test_every_check_has_a_code_of_its_own() -> None:
    assert set(codes.FLAGS) == set(FLAG_NAMES)
    ours = [*codes.FLAGS.values(), *codes.LEAD.values(), *codes.CREDIT.values(), codes.SCORE, codes.INSIDE]
    values = [concept.value for concept in ours]
    assert len(set(values)) == len(values)
    assert all(len(value) <= 16 for value in values)
    assert all(len(concept.meaning) <= 64 for concept in ours)


def test_a_structure_without_a_code_gets_a_generic_one(tmp_path: Path) -> None:
    series(tmp_path / "scan")
    paths = save_quickly(explanation(tmp_path / "scan", structure="the strange thing"), tmp_path / "dicom")
    kind = pydicom.dcmread(paths["segmentation"]).SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodeMeaning) == ("91723000", "Anatomical Structure")


def test_the_report_holds_the_measurements_with_their_codes(written: Written) -> None:
    report = hd.sr.srread(written.paths["structured_report"])
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    values = {m.name.value: (m.value, m.unit.value) for m in group.get_measurements()}
    volume = imaging.volume_ml(written.explanation.prediction)
    assert values == {
        "118565006": (pytest.approx(volume), "ml"),
        "SCORE": (0.875, "1"),
        "LARGEST-LOSS": (pytest.approx(written.explanation.record["measurements"]["largest_score_lost"]), "1"),
        "INSIDE": (0.25, "1"),
        "INSIDE-CHANCE": (0.125, "1"),
        "OVERLAP": (0.5, "1"),
        "LEAD-DELETION": (0.25, "1"),
        "LEAD-INSERTION": (-0.125, "1"),
        "SENSITIVITY": (0.125, "1"),
    }
    answers = {e.name.value: e.value.meaning for e in group.get_qualitative_evaluations()}
    assert answers == {"COMPLETE": "Yes", "LEANS-OUTSIDE": "Yes", "MODALITY": "No"}
    segment = group.referenced_segment
    assert segment.referenced_sop_instance_uid == written.object("segmentation").SOPInstanceUID
    assert segment[0].referenced_segment_numbers == [1]
    inside = next(m for m in group.get_measurements() if m.name.value == "INSIDE")
    assert inside.referenced_images[0].referenced_sop_instance_uid == written.object("parametric_map").SOPInstanceUID
    comments = [item.TextValue for item in group[0].ContentSequence if item.ValueType == "TEXT"]
    assert comments[-2:] == [NOTICE, "Most of the effect lies outside."]


def test_the_report_names_scan_map_and_segments_as_its_evidence(written: Written) -> None:
    made = written.object("structured_report")
    evidence = made.CurrentRequestedProcedureEvidenceSequence
    named = {
        item.ReferencedSOPInstanceUID
        for study in evidence
        for one in study.ReferencedSeriesSequence
        for item in one.ReferencedSOPSequence
    }
    objects = [written.object(name).SOPInstanceUID for name in ("parametric_map", "standard_error", "segmentation")]
    assert named == {*written.series.instances, *objects}


def test_a_cancelled_explanation_is_told_as_partial(tmp_path: Path) -> None:
    series(tmp_path / "scan")
    paths = save_quickly(explanation(tmp_path / "scan", complete=False), tmp_path / "dicom")
    assert pydicom.dcmread(paths["structured_report"]).CompletionFlag == "PARTIAL"


def test_the_picture_says_research_in_its_pixels(written: Written, tmp_path: Path) -> None:
    made = written.object("figure")
    pixels = made.pixel_array
    figure = np.asarray(Image.open(written.explanation.save(tmp_path / "plain")["figure"]).convert("RGB"))
    band = (pixels.shape[0] - figure.shape[0]) // 2
    assert band > 20
    np.testing.assert_array_equal(pixels[band:-band], figure)
    amber = np.array([255, 191, 71])
    for words in (pixels[:band], pixels[-band:]):
        written_in = (np.abs(words.astype(int) - amber).max(axis=-1) < 20).any(axis=0)
        assert written_in.sum() > 0.2 * pixels.shape[1]
    assert made.BurnedInAnnotation == "NO"


def test_the_pdf_is_the_report(written: Written) -> None:
    made = written.object("report")
    pdf = made.EncapsulatedDocument[: made.EncapsulatedDocumentLength]
    assert made.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF")


# --- other scans ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames_backwards", [False, True])
def test_frames_of_a_file_are_referred_to_by_their_numbers(frames_backwards: bool, tmp_path: Path) -> None:
    scan = series(tmp_path / "scan", enhanced=True, frames_backwards=frames_backwards)
    paths = save_quickly(explanation(tmp_path / "scan"), tmp_path / "dicom")
    image = pydicom.dcmread(tmp_path / "scan" / "enhanced.dcm")
    made = pydicom.dcmread(paths["parametric_map"])
    numbers = []
    for frame in made.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedSOPInstanceUID == scan.instances[0]
        numbers.append(int(reference.ReferencedFrameNumber))
        there = image.PerFrameFunctionalGroupsSequence[numbers[-1] - 1].PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, there, atol=1e-6)
    assert sorted(numbers) == list(range(1, SIZE[0] + 1))


def test_a_series_for_each_slice_is_referred_to_series_by_series(tmp_path: Path) -> None:
    scan = series(tmp_path / "scan")
    own = {}
    for number, path in enumerate(sorted((tmp_path / "scan").iterdir())):
        image = pydicom.dcmread(path)
        image.SeriesInstanceUID = own[image.SOPInstanceUID] = f"1.2.3.{number}"
        image.save_as(path)
    made = pydicom.dcmread(save_quickly(explanation(tmp_path / "scan"), tmp_path / "dicom")["segmentation"])
    referenced = {
        item.ReferencedSOPInstanceUID: entry.SeriesInstanceUID
        for entry in made.ReferencedSeriesSequence
        for item in entry.ReferencedInstanceSequence
    }
    assert referenced == own
    assert set(referenced) == set(scan.instances)


def test_a_tilted_series_is_answered_on_the_straight_grid(tmp_path: Path) -> None:
    """The slices step sideways: the objects lie on the grid that the scan was resampled to, and say so."""
    shift = AXES[:, 1] * 1.5
    scan = series(tmp_path / "scan", shift=shift)
    read = imaging.read_scan(tmp_path / "scan")
    assert any("tilt" in note for note in read.notes)
    depth, rows, columns = sitk.GetArrayViewFromImage(read.image).shape
    assert rows > SIZE[1]
    cue = np.array(read.image.TransformIndexToPhysicalPoint((4, 7, 5)))
    saliency = np.zeros((depth, rows, columns))
    saliency[5, 7, 4] = 1
    explained = explanation_of(read, saliency, saliency, saliency)
    made = pydicom.dcmread(save_quickly(explained, tmp_path / "dicom")["parametric_map"])
    positions = [
        np.array(f.PlanePositionSequence[0].ImagePositionPatient) for f in made.PerFrameFunctionalGroupsSequence
    ]
    np.testing.assert_allclose(np.diff(positions, axis=0), [NORMAL * 2.5] * (depth - 1), atol=1e-4)
    places = np.stack(list(frame_places(made)))
    np.testing.assert_allclose(places[made.pixel_array > 0.5], [cue], atol=1e-4)
    for frame in made.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.SpatialLocationsPreserved == "NO"
        there = next(
            np.array(image.ImagePositionPatient)
            for image in map(pydicom.dcmread, (tmp_path / "scan").iterdir())
            if image.SOPInstanceUID == reference.ReferencedSOPInstanceUID
        )
        height = (np.array(frame.PlanePositionSequence[0].ImagePositionPatient) - there) @ AXES[:, 2]
        assert height == pytest.approx(0, abs=1e-4)
    assert {item.ReferencedSOPInstanceUID for item in made.SourceImageSequence} == set(scan.instances)


def test_a_scan_in_a_zip_file_is_read_once_more_when_the_objects_are_written(tmp_path: Path) -> None:
    scan = series(tmp_path / "scan")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in (tmp_path / "scan").iterdir():
            archive.write(path, f"some/where/{path.name}")
    shutil.rmtree(tmp_path / "scan")
    explained = explanation(tmp_path / "scan.zip")
    made = pydicom.dcmread(save_quickly(explained, tmp_path / "dicom")["parametric_map"])
    assert (made.StudyInstanceUID, made.PatientID) == (scan.study, SECRETS[1])


def test_a_scan_that_was_converted_is_answered_with_its_series_named(tmp_path: Path) -> None:
    """As 3D Slicer hands it over: the voxels without a source, along axes of its own."""
    scan = series(tmp_path / "scan")
    explained = explanation(tmp_path / "scan")
    image = sitk.Flip(explained.image, (False, True, True))
    saliency, target, region = contents()
    turned = explanation_of(
        imaging.Scan(image, modality="CT"), *(np.flip(part, (0, 1)) for part in (saliency, target, region))
    )
    assert turned.source is None
    with pytest.raises(InputError, match="was not read from DICOM"):
        turned.save_dicom(tmp_path / "dicom")
    made = pydicom.dcmread(turned.save_dicom(tmp_path / "dicom", source=scan.folder)["parametric_map"])
    np.testing.assert_array_equal(made.pixel_array, saliency.astype(np.float32))


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"), [("FrameOfReferenceUID", "frame of reference"), ("StudyInstanceUID", "without UIDs")]
)
def test_a_series_that_nothing_can_refer_to_is_refused(name: str, words: str, tmp_path: Path) -> None:
    series(tmp_path / "scan", changes={name: None})
    with pytest.raises(InputError, match=words):
        imaging.read_dicom_source(tmp_path / "scan")


def test_a_series_of_two_frames_of_reference_is_refused(tmp_path: Path) -> None:
    series(tmp_path / "scan")
    path = next((tmp_path / "scan").iterdir())
    image = pydicom.dcmread(path)
    image.FrameOfReferenceUID = "1.2.3"
    image.save_as(path)
    with pytest.raises(InputError, match="several studies or frames of reference"):
        imaging.read_dicom_source(tmp_path / "scan")


def test_a_volume_that_is_no_dicom_is_refused(tmp_path: Path) -> None:
    path = imaging.write_volume(sitk.Image(8, 8, 8, sitk.sitkInt16), tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match="is no DICOM series"):
        imaging.read_dicom_source(path)


@pytest.mark.parametrize("change", ["gone", "another"])
def test_a_series_that_was_changed_meanwhile_is_refused(change: str, tmp_path: Path) -> None:
    series(tmp_path / "scan")
    explained = explanation(tmp_path / "scan")
    shutil.rmtree(tmp_path / "scan")
    if change == "another":
        series(tmp_path / "scan")
    with pytest.raises(InputError, match="not there any more" if change == "gone" else "was changed"):
        save_quickly(explained, tmp_path / "dicom")
    assert not (tmp_path / "dicom" / "parametric_map.dcm").exists()


def test_the_folder_of_the_scan_is_refused(tmp_path: Path) -> None:
    series(tmp_path / "scan")
    before = sorted((tmp_path / "scan").iterdir())
    with pytest.raises(InputError, match="holds the scan itself"):
        save_quickly(explanation(tmp_path / "scan"), tmp_path / "scan")
    assert sorted((tmp_path / "scan").iterdir()) == before


def test_files_of_the_user_are_never_replaced(written: Written, tmp_path: Path) -> None:
    (tmp_path / "figure.dcm").write_bytes(b"mine")
    with pytest.raises(InputError, match="which no explanation wrote"):
        save_quickly(written.explanation, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.dcm"]
    assert (tmp_path / "figure.dcm").read_bytes() == b"mine"


def test_objects_and_other_results_never_replace_each_other(written: Written, tmp_path: Path) -> None:
    explained = written.explanation
    plain = explained.save(tmp_path / "plain")
    with pytest.raises(InputError, match="holds other results of an earlier explanation"):
        save_quickly(explained, tmp_path / "plain")
    assert all(path.is_file() for path in plain.values())
    folder = written.paths["figure"].parent
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError, match="holds DICOM objects of an earlier explanation"):
        explained.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_objects_of_an_earlier_run_are_replaced_whole_or_not_at_all(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save_quickly(written.explanation, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_given: object, **_options: object) -> None:
        raise ValueError("invalid value for PatientName: Doe^Jane")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "encapsulated_pdf", fail)
        with pytest.raises(InputError, match="cannot be made") as refused:
            save_quickly(written.explanation, tmp_path)
    assert "Doe" not in str(refused.value)
    chain: BaseException | None = refused.value
    while chain is not None:  # a log shows causes too
        assert "Doe" not in str(chain)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = save_quickly(written.explanation, tmp_path)
    assert set(again) == set(first)
    assert (tmp_path / "figure.dcm").read_bytes() != before["figure.dcm"]


def test_without_highdicom_the_way_out_is_named(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match="pip install highdicom") as refused:
        written.explanation.save_dicom("somewhere")
    assert [(way.kind, way.subject) for way in refused.value.ways] == [("install", "highdicom")]


def test_a_folder_with_objects_in_it_is_still_the_same_scan(written: Written, tmp_path: Path) -> None:
    """What comes back from an archive is the study, our objects among the slices: they are passed over."""
    for path in (*written.series.folder.iterdir(), *written.paths.values()):
        shutil.copy(path, tmp_path / path.name)
    read = imaging.read_scan(tmp_path)
    assert imaging.same_geometry(read.image, written.explanation.image)
    expected = sitk.GetArrayViewFromImage(written.explanation.image)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(read.image), expected)
