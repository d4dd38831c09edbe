"""The report of an explanation: what it says, what it must not say, and what it refuses to tell of."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset

from Testing.Python.test_explanation import Finder, Network, scan
from XAICLIPLib.errors import InputError
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.pipeline import explain
from XAICLIPLib.reporting import charts, report
from XAICLIPLib.reporting.document import ROOM, wrapped
from XAICLIPLib.reporting.report import save_report

PATIENT = "DOE^JOHN"


def explained(image: Any = None, prompt: str = "liver", **options: Any) -> Explanation:
    given = {"model": Network(), "localizer": Finder(), "device": "cpu", "window_mm": 24.0, "stride_mm": 24.0}
    if options.get("method") == "structures":
        del given["window_mm"], given["stride_mm"]
    return explain(scan() if image is None else image, prompt, **given | options)


class Page(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text, self.tags, self.addresses = "", [], []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.addresses += [
            value for key, value in attrs if key in ("src", "href", "action", "data", "srcset", "poster")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an explanation that was checked."""
    folder = tmp_path_factory.mktemp("checked")
    explained(check=True).save(folder)
    return folder


@pytest.fixture(scope="module")
def page(checked: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of it, with the scan."""
    return Page(save_report(checked, tmp_path_factory.mktemp("page") / "report.html", volume=scan())["html"])


@pytest.fixture
def copy(checked: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in checked.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "explanation.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def pages_of(pdf: Path) -> int:
    return len(re.findall(rb"/Type /Page\b(?!s)", pdf.read_bytes()))


def test_a_page_is_one_file_without_scripts_and_without_anything_to_load(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert len(page.addresses) == page.tags.count("img") == 3
    for address in page.addresses:
        kind, _, data = address.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert not re.search(r"https?:|url\(|@import|\bon\w+=", page.source.split("<body>")[0] + page.text)
    assert "default-src 'none'" in page.source


def test_it_says_what_was_explained_with_what_and_whether_to_believe_it(checked: Path, page: Page) -> None:
    text = page.text
    record = json.loads((checked / "explanation.json").read_text())
    assert "Why did the network draw the liver here?" in text and "not for diagnosis" in text
    for title in ("Before you read", "What was checked", "Three planes", "Slices with", "faithful", "How to read it"):
        assert title in text
    for flag in record["reliability"]:
        assert flag["sentence"] in text
    assert f"{record['faithfulness']['map']['deletion']['area']:.3f}" in text
    assert record["input"]["voxels_sha256"] in text and "0" * 64 in text, "checksums of scan and network"
    assert "tiny" in text and "occlusion, window 24 mm" in text
    assert "middle of the region" in text, "the controls"


def test_warnings_stand_first_and_once(copy: Path, tmp_path: Path) -> None:
    sentence = "The map explains nothing: do not read it."

    def change(record: dict[str, Any]) -> None:
        flag = {"name": "like the null", "sentence": sentence, "value": 0.0, "threshold": 0.1, "raised": True}
        record["reliability"], record["warnings"] = [flag], [sentence, "Take care."]

    changed(copy, change)
    page = Page(save_report(copy)["html"])
    head = page.text.split("What was checked")[0]
    assert head.count(sentence) == 1 and "Take care." in head
    assert 'class="cautions"' in page.source


def test_without_warnings_it_says_that_this_is_no_proof(copy: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["reliability"], record["warnings"], record["faithfulness"] = [], [], None

    changed(copy, change)
    page = Page(save_report(copy)["html"])
    assert 'class="calm"' in page.source and "does not make the map true" in page.text
    assert "Not checked, with --check" in page.text and "This was not checked" in page.text


def test_a_hostile_prompt_is_text(tmp_path: Path) -> None:
    prompt = "<script>alert(1)</script><img src=x onerror=alert(1)> ${7*7} {{7*7}} $x^2$"
    result = explained(prompt=prompt, target="liver", region="whole")
    page = Page(result.report(tmp_path / "report.html")["html"])
    assert "script" not in page.tags and len(page.addresses) == page.tags.count("img")
    assert "<script>" not in page.source and "{{7*7}}" in page.text and "<script>alert(1)</script>" in page.text


def dicom(folder: Path, image: sitk.Image) -> Path:
    """A DICOM series with a patient in every file and in its path."""
    folder = folder / PATIENT
    folder.mkdir(parents=True)
    study, series = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    for number, plane in enumerate(sitk.GetArrayFromImage(image)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        file.PatientName, file.PatientID, file.PatientBirthDate = PATIENT, "MRN-4711", "19511231"
        file.StudyDate, file.InstitutionName, file.Modality = "20240229", "Charity Hospital", "CT"
        file.StudyInstanceUID, file.SeriesInstanceUID, file.InstanceNumber = study, series, number + 1
        x, y, z = image.GetOrigin()
        file.ImagePositionPatient = [x, y, z + number * image.GetSpacing()[2]]
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.PixelSpacing, file.SliceThickness = list(image.GetSpacing()[:2]), image.GetSpacing()[2]
        file.Rows, file.Columns = plane.shape
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
        file.RescaleIntercept, file.RescaleSlope = 0, 1
        file.PixelData = plane.astype(np.int16).tobytes()
        file.save_as(folder / f"{PATIENT}-{number:03}.dcm", enforce_file_format=True)
    return folder


def text_of_pdf(path: Path) -> str:
    """What stands in a PDF as text: neither pictures nor fonts, in whose bytes any three letters turn up by chance."""
    outside, streams = b"", []
    for number, part in enumerate(re.split(rb"(?<=>>)\s*stream\r?\n|\r?\nendstream", path.read_bytes())):
        if number % 2 == 0:
            outside += part
        elif b"/Image" not in outside.rpartition(b"obj")[2]:
            with contextlib.suppress(zlib.error):
                streams.append(zlib.decompress(part))
    assert any(b" Tf" in stream for stream in streams), "no page was read"
    return (outside + b"".join(s for s in streams if s.isascii())).decode("latin-1")


def test_nothing_of_the_patient_gets_in(tmp_path: Path) -> None:
    series = dicom(tmp_path, scan())
    output = tmp_path / "results of DOE^JOHN"
    explained(series, prompt=f"{series}/scan.dcm", target="liver", region="whole").save(output)
    written = save_report(output, output / "report.html", volume=series, pdf=True)
    secret = ("DOE", "JOHN", "MRN-4711", "19511231", "20240229", "Charity", str(tmp_path))
    text = Page(written["html"]).source + text_of_pdf(written["pdf"])
    assert [word for word in secret if word in re.sub(r"base64,[^\"]*", "", text)] == []
    assert "(a path)" in text


def test_another_scan_is_refused_in_a_sentence(checked: Path, tmp_path: Path) -> None:
    other = scan()
    other[5, 5, 5] = 7
    moved = scan()
    moved.SetOrigin((0.0, 0.0, 0.0))
    for image in (other, moved):
        with pytest.raises(InputError, match="is not the scan that this explanation was made of"):
            save_report(checked, tmp_path / "report.html", volume=image)
    assert not (tmp_path / "report.html").exists()


def test_without_the_scan_it_says_that_slices_need_it(checked: Path, tmp_path: Path) -> None:
    page = Page(save_report(checked, tmp_path / "report.html")["html"])
    assert "--volume" in page.text and page.tags.count("img") == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("target"),
        lambda r: r["target"].update(label="six"),
        lambda r: r["target"].update(name=""),
        lambda r: r.update(warnings="none"),
        lambda r: r.update(complete=1),
        lambda r: r["parameters"].update(method="magic"),
        lambda r: r["models"].update(segmenter=None),
        lambda r: r["input"].update(spacing_mm=[3.0]),
        lambda r: r["region"].update(volume_ml="much"),
        lambda r: r.update(reliability=[{"name": "x"}]),
        lambda r: r["faithfulness"]["map"]["deletion"].update(scores=[0.5]),
        lambda r: r["faithfulness"].update(volumes_mm3=3),
        lambda r: r["faithfulness"].pop("lead"),
        lambda r: r["measurements"].update(structures=[{"structure": "liver"}]),
        lambda r: r["models"].update(localizer=["finder"]),
    ],
)
def test_a_damaged_record_is_refused_in_a_sentence(copy: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    changed(copy, change)
    with pytest.raises(InputError, match=r"explanation\.json is damaged \(.*\): explain the scan again") as caught:
        save_report(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "NaN", '{"format": "XAI-CLIP explanation 9"}', "\x00\xff"])
def test_what_is_no_record_is_refused_in_a_sentence(copy: Path, text: str) -> None:
    (copy / "explanation.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"explanation\.json is (damaged|no record of the format)"):
        save_report(copy)


def test_a_folder_without_an_explanation_or_with_damaged_volumes_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no explanation\.json"):
        save_report(tmp_path / "nosuch", tmp_path / "report.html")
    whole = (copy / "saliency.nrrd").read_bytes()
    (copy / "saliency.nrrd").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"saliency\.nrrd is damaged"):
        save_report(copy)
    (copy / "saliency.nrrd").unlink()
    with pytest.raises(InputError, match=r"holds no saliency\.nrrd"):
        save_report(copy)


def test_a_record_of_an_earlier_version_is_read(copy: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        for key in ("reliability", "faithfulness", "stability"):
            del record[key]

    changed(copy, change)
    assert "Not checked" in Page(save_report(copy)["html"]).text


def test_a_network_that_draws_what_it_cannot_see_is_told_of(copy: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["faithfulness"]["map"]["deletion"]["scores"][-1] = 0.9

    changed(copy, change)
    assert "goes on drawing what it cannot see" in Page(save_report(copy)["html"]).text


def test_a_file_of_another_kind_or_place_is_refused(checked: Path) -> None:
    with pytest.raises(InputError, match=r"neither an \.html nor a \.pdf"):
        save_report(checked, "report.docx")
    with pytest.raises(InputError, match="cannot be written"):
        save_report(checked, "/proc/nowhere/report.html")


def test_the_pdf_has_a_page_for_each_part_and_no_line_leaves_it(checked: Path, tmp_path: Path) -> None:
    written = save_report(checked, tmp_path / "report.pdf", volume=scan())
    assert list(written) == ["pdf"]
    # Summary with planes, slices, curves with reading, provenance; some of these take two.
    assert 5 <= pages_of(written["pdf"]) <= 9
    assert b"CreationDate" not in written["pdf"].read_bytes()


def test_lines_are_wrapped_to_the_page_and_words_without_end_are_broken() -> None:
    from XAICLIPLib.reporting.document import _width

    for text in ("a liver " * 60, "ab" * 100, "short", "", f"sha {'f' * 64}"):
        lines = wrapped(text, 10, ROOM)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(_width(line, 10, "normal") <= ROOM for line in lines)


def test_structures_are_shown_as_bars_and_rows(tmp_path: Path) -> None:
    result = explained(method="structures", region="whole")
    page = Page(result.report(tmp_path / "report.html")["html"])
    assert page.tags.count("img") == 3
    for row in result.measurements["structures"]:
        assert row["structure"] in page.text and f"{row['volume_ml']:.0f} ml" in page.text


def test_a_target_that_was_given_is_read_back(tmp_path: Path) -> None:
    image = scan()
    mask = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    mask.CopyInformation(image)
    mask[6:9, 6:9, 6:9] = 1
    explained(image, target=mask, region="whole").save(tmp_path)
    assert np.array_equal(
        sitk.GetArrayFromImage(report.saved_explanation.read(tmp_path).target), sitk.GetArrayFromImage(mask)
    )


def test_slices_are_those_with_the_effect_from_head_to_foot() -> None:
    values = np.zeros((40, 20, 20), np.float32)
    values[10:14, 5:9, 5:9], values[30, 8, 8] = 0.4, 0.3
    saliency = sitk.GetImageFromArray(values)
    saliency.SetSpacing((2.0, 2.0, 3.0))
    heights = charts.salient_heights(saliency, saliency > 0)
    assert heights == sorted(heights, reverse=True)
    indices = [z / 3 for z in heights]
    assert all(9 <= i <= 14 or 29 <= i <= 31 for i in indices)
    assert any(29 <= i <= 31 for i in indices) and any(10 <= i <= 14 for i in indices)
    assert min(np.diff(heights[::-1])) >= charts.APART_MM - 1e-6
    assert charts.salient_heights(saliency * 0, saliency > 0), "without effect, those of the target"


def test_a_trace_of_effect_all_over_is_no_reason_to_show_the_ends_of_the_scan() -> None:
    values = np.full((40, 16, 16), 0.02, np.float32)
    values[10:14, 5:9, 5:9] = 0.9
    saliency = sitk.GetImageFromArray(values)
    saliency.SetSpacing((2.0, 2.0, 3.0))
    assert all(8 <= z / 3 <= 15 for z in charts.salient_heights(saliency, saliency > 0.5))


def test_of_structures_the_report_tells_what_was_removed_and_what_was_not(tmp_path: Path) -> None:
    found = explained(method="structures", region="guided", margin_mm=0.0)
    found.save(tmp_path)
    page = save_report(tmp_path)["html"].read_text(encoding="utf-8")
    left_out = found.measurements["not_removed"]
    assert left_out and f"Not removed, as they lie outside the region: {', '.join(left_out)}." in page
    assert "Outside the region nothing was tried" not in page
    assert f"{found.measurements['effect_inside_target']:.0%} of all that was lost by removing structures" in page


def test_pictures_are_pngs_that_open(tmp_path: Path) -> None:
    found = explained(method="structures", region="whole", check=True)
    for png in (
        charts.structures(found.measurements["structures"], "liver"),
        charts.curves(found.record["faithfulness"], "liver"),
    ):
        (tmp_path / "picture.png").write_bytes(png)
        with PIL.Image.open(tmp_path / "picture.png") as picture:
            picture.load()
            assert picture.width > 500 and not picture.info.get("Software")


def test_the_command_writes_both_kinds_and_says_where(
    checked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from XAICLIPLib.commands.main import main

    assert main(["report", str(checked), "--output", str(tmp_path / "r.html"), "--pdf"]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == [f"Written: {tmp_path / name}" for name in ("r.html", "r.pdf")]
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no explanation.json" in capsys.readouterr().err


def test_the_worker_writes_a_report(checked: Path, tmp_path: Path) -> None:
    from XAICLIPLib.worker import protocol
    from XAICLIPLib.worker.service import RequestHandler

    request = protocol.Report(id=3, folder=str(checked), output=str(tmp_path / "r.html"))
    reply = RequestHandler(tmp_path, lambda _reply: None).compute(request, lambda: False, lambda: False)
    assert isinstance(reply, protocol.Reported) and set(reply.files) == {"html"}
    assert all(Path(path).is_file() for path in reply.files.values())


def test_it_tells_how_much_of_the_scan_it_takes(checked: Path, page: Page) -> None:
    regions = json.loads((checked / "explanation.json").read_text())["key_regions"]
    text = page.text
    assert "How much of the scan it takes" in text
    assert f"the score is {regions['target_shown_alone']:.3f}" in text
    for kind in ("sufficient", "necessary"):
        for order in ("map", "outline"):
            assert f"{regions[kind][order]['volume_ml']:.0f} ml" in text
    assert {"sufficient.nrrd", "necessary.nrrd"} <= {path.name for path in checked.iterdir()}
    mask = sitk.ReadImage(str(checked / "sufficient.nrrd"))
    voxel_ml = np.prod(mask.GetSpacing()) / 1000
    assert sitk.GetArrayFromImage(mask).sum() * voxel_ml == pytest.approx(regions["sufficient"]["map"]["volume_ml"])


def test_it_tells_what_each_structure_around_is_credited_with(tmp_path: Path) -> None:
    result = explain(scan(), "liver", model=Network(), localizer=Finder(), device="cpu")
    result.save(tmp_path / "owen")
    text = Page(save_report(tmp_path / "owen")["html"]).text
    assert "What it leans on around the drawing" in text
    rows = result.measurements["context_credits"]
    for row in rows:
        assert row["structure"] in text
    assert "How much of the scan it takes" not in text, "it was not checked"


def test_credits_are_read_as_parts_of_the_score(tmp_path: Path) -> None:
    result = explain(scan(), "liver", model=Network(), localizer=Finder(), device="cpu")
    result.save(tmp_path / "owen")
    text = Page(save_report(tmp_path / "owen")["html"]).text
    assert "The colour of a place is the credit of the cube of 12 mm around it" in text
    assert "attributions on a scale of their own" not in text, "the credits add up to the score"
    assert "spread evenly over all that was tried" not in text, "the share is of two credits, not by volume"
    assert "by their size" in text and "if both were the same" not in text
    assert "a map that knows nothing would have" not in text, "of credits it has none"
    assert result.measurements["effect_inside_target_if_uniform"] is None
    assert not re.search(r"[+−-]0(\.0+)?(%|\s)", text), "no zero has a sign"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["key_regions"].pop("keeps"),
        lambda record: record["key_regions"]["sufficient"].update(map={"volume_ml": "much"}),
        lambda record: record["measurements"].update(context_credits=[{"structure": 3, "credit": 0.1, "volume_ml": 1}]),
    ],
)
def test_a_record_with_broken_regions_or_credits_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    changed(copy, change)
    with pytest.raises(InputError, match="damaged"):
        save_report(copy)
