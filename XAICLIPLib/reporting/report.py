"""The report of an explanation for a clinician: the question, the result, and whether to believe it.

>>> save_report("results/liver", "liver.html", volume="scan.nii.gz", pdf=True)  # doctest: +SKIP

It holds nothing that identifies the patient: it does not mention paths or files of the scan, and a path in the record
is replaced by "(a path)".
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.reliability_flag import FlagName
from XAICLIPLib.explainers.methods import METHODS
from XAICLIPLib.imaging.channels import Volume
from XAICLIPLib.reporting import charts, saved_explanation
from XAICLIPLib.reporting.document import Document, Picture, Section, Table, html, write_pdf
from XAICLIPLib.reporting.figure import save_figure
from XAICLIPLib.reporting.saved_explanation import SavedExplanation
from XAICLIPLib.system.files import atomic_file

NOTICE = "Research software, not a medical device: not for diagnosis."

HALLUCINATES = 0.5
"""If more than this share of the score is left when everything is hidden, the network draws what it cannot see."""

TITLES: Mapping[FlagName, str] = {
    "answers by chance": "Same scan, same answer",
    "answers the same": "Looks at the scan",
    "unfamiliar modality": "Kind of scan",
    "unfamiliar intensities": "Grey values",
    "unfamiliar spacing": "Resolution",
    "mostly padding": "Field of view",
    "unusual volume": "Size of the drawing",
    "region disagrees": "Region and drawing",
    "like the null": "Against maps that know nothing",
    "no more than the outline": "Against the outline",
    "not converged": "Settled",
    "unstable": "Noise in the scan",
    "leans outside": "Place of the effect",
}
"""The heading of each reliability check in the report."""

_PATH = re.compile(r"(?:[A-Za-z]:|~|\.{1,2})?(?:[\\/][^\\/\s\"'<>]+){2,}[\\/]?")


def save_report(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    volume: Volume | None = None,
    series: int | str | None = None,
    pdf: bool = False,
) -> dict[str, Path]:
    """Write the explanation in a folder as one page for a reader.

    Parameters
    ----------
    folder
        The folder that `XAICLIPLib.explanation.Explanation.save`, the command or the panel wrote.
    output
        The file to write, ``.html`` or ``.pdf``; by default ``report.html`` in the folder.
    volume
        The scan, which the folder does not hold. With it, the report shows slices with the largest effect.
    series
        Which series of a DICOM folder that holds several, as for `explain`.
    pdf
        Write a PDF beside the HTML file.

    Returns
    -------
    dict
        Paths of what was written: ``html``, ``pdf``.

    Raises
    ------
    InputError
        The folder holds no explanation that can be read, the volume is another scan, or the file cannot be written.
    """
    first = Path(output) if output is not None else Path(folder) / "report.html"
    if first.suffix.lower() not in (".html", ".pdf"):
        raise InputError(f"{first} is neither an .html nor a .pdf file: name one of these.")
    saved = saved_explanation.read(folder)
    scan = None if volume is None else saved_explanation.scan_of(saved, volume, series)
    document = document_of(saved, scan)
    paths = {first.suffix.lower()[1:]: first} | ({"pdf": first.with_suffix(".pdf")} if pdf else {})
    for kind, path in paths.items():
        try:
            with atomic_file(path) as temporary:
                if kind == "pdf":
                    write_pdf(document, temporary)
                else:
                    temporary.write_text(html(document), encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror or error}): choose another file.") from error
    return paths


def document_of(saved: SavedExplanation, scan: sitk.Image | None) -> Document:
    """Compose the report.

    Parameters
    ----------
    saved
        The explanation.
    scan
        The scan that was explained; None for a report without slices.
    """
    record = saved.record
    name = record["target"]["name"]
    parts = (
        _checks(record),
        _summary(record),
        _planes(saved, scan),
        _slices(saved, scan),
        _structures(record),
        _context(record),
        _key_regions(record),
        _faithfulness(record),
        _reading(record),
        _limits(),
        _provenance(record),
        _checksums(saved),
    )
    raised = [flag["sentence"] for flag in record["reliability"] if flag["raised"]]
    return _clean(
        Document(
            title=f"Why did the network draw the {name} here?",
            subtitle=f"{record['models']['segmenter']['name']} · {record['parameters']['described']} · "
            f"“{record['prompt']}”",
            notice=NOTICE,
            cautions=list(dict.fromkeys([*raised, *record["warnings"]])),
            without_cautions="No check raised a warning. That does not make the map true: what was not checked is "
            "listed below.",
            sections=[part for part in parts if part is not None],
        )
    )


# --- the sections -------------------------------------------------------------------------------------------------


def _checks(record: Mapping[str, Any]) -> Section:
    flags = {flag["name"]: flag for flag in record["reliability"]}
    rows = [
        (TITLES[name], "WARNING" if flag["raised"] else "passed", flag["sentence"])
        for name, flag in flags.items()
        if name in TITLES
    ]
    missing = []
    if "like the null" not in flags and record["faithfulness"] is None:
        missing.append("whether the map is better than one that knows nothing of the network")
    elif "like the null" not in flags:
        missing.append(
            "whether the map is better than one that knows nothing (the score could not tell one order from another)"
        )
    if "unstable" not in flags:
        missing.append("whether a little noise in the scan changes the map")
    if "leans outside" not in flags:
        missing.append("where the effect lies")
    if "region disagrees" not in flags:
        missing.append("whether words and drawing agree (the region was not found by words)")
    more = ", with --check when it is explained" if record["faithfulness"] is None else ""
    paragraphs = [f"Not checked{more if len(missing) else ''}: {'; '.join(missing)}."] if missing else []
    return Section("What was checked", paragraphs, table=Table(rows, ("Check", "", "What was found")) if rows else None)


def _summary(record: Mapping[str, Any]) -> Section:
    name, measurements, region = record["target"]["name"], record["measurements"], record["region"]
    parameters, models = record["parameters"], record["models"]
    captions = METHODS[parameters["method"]].captions
    target_source = {
        "predicted": "what the network drew",
        "predicted in a box": "what the network drew in a box",
        "given": "a mask that was given",
    }[record["target"]["voxels"]]
    paragraphs = []
    volume, score = _float(measurements, "target_volume_ml"), _float(measurements, "score_unperturbed")
    lost = _float(measurements, "largest_score_lost")
    if volume is not None:
        paragraphs.append(f"Explained is the {name}, {volume:.0f} ml: {target_source}.")
    if captions.value and score is not None and lost is not None:
        paragraphs.append(
            f"Hiding parts of the scan lowered the score of {score:.3f} by up to {max(lost, 0.0):.3f} "
            f"({captions.value})."
        )
    follows = _float(measurements, "correlation_with_overlap")
    if follows is not None:
        paragraphs.append(
            f"The effect of a hidden cube follows how much of the {name} it hides, at a correlation of {follows:.2f}. "
            "At 1 the map is the outline of the drawing again, and says nothing more."
        )
    credits = [_float(measurements, f"credit_of_{part}") for part in ("organ", "context")]
    alone = [_float(measurements, f"{part}_alone") for part in ("organ", "context")]
    if None not in (*credits, *alone):
        paragraphs.append(
            f"Of the score {credits[0]:.3f} are owed to the {name} itself and {credits[1]:.3f} to what lies around it. "
            f"Shown alone, the {name} scores {alone[0]:.3f}, and all around it without it {alone[1]:.3f}."
        )
    inside = _float(measurements, "effect_inside_target")
    uniform = _float(measurements, "effect_inside_target_if_uniform")
    if inside is not None and uniform is not None and "structures" in measurements:
        paragraphs.append(
            f"{inside:.0%} of all that was lost by removing structures went with the {name} itself; were all alike, "
            f"{uniform:.0%} would."
        )
    elif inside is not None and "credit_of_organ" in measurements:
        paragraphs.append(f"Of these two credits, by their size, {inside:.0%} is the {name}'s.")
    elif inside is not None and uniform is not None:
        paragraphs.append(
            f"{inside:.0%} of the effect lies inside the {name}; spread evenly over all that was tried, {uniform:.0%} "
            "would. The rest lies in the tissue around it."
        )
    if not record["complete"]:
        paragraphs.append("The computation was cancelled before its end, and the map is incomplete.")
    region_source = {
        "guided": "found in the scan for these words",
        "prediction box": "a box around the network's own drawing, since the words were not found, or found elsewhere",
        "guided and prediction": "found in the scan for these words, and what the network draws beside that",
        "whole": "the whole scan",
        "file": "given by the user",
    }.get(region.get("source"), str(region.get("source")))
    rows = [
        ("Words", record["prompt"]),
        ("Segmentation network", _model(models["segmenter"])),
        ("Image-text model", _model(models["localizer"]) if models.get("localizer") else "none was needed"),
        ("Method", parameters["described"]),
        ("Hidden by", parameters["baseline"]),
        ("Score", parameters["score"]),
        ("Region", f"{region_source}; {region['volume_ml']:.0f} ml, {region['share_of_body']:.0%} of the body"),
    ]
    agreement = region.get("agreement_with_prediction")
    if agreement:
        rows.append(
            (
                "Region and drawing",
                f"{agreement.get('recall', 0):.0%} of the drawing lies in the region; overlap (Dice) "
                f"{agreement.get('dice', 0):.2f}, centres {agreement.get('centroid_distance_mm', 0):.0f} mm apart. A "
                "region has a margin, so that an overlap well below 1 is no fault.",
            )
        )
    return Section("What was explained", paragraphs, table=Table(rows))


def _planes(saved: SavedExplanation, scan: sitk.Image | None) -> Section | None:
    record, name = saved.record, saved.record["target"]["name"]
    png = saved.figure
    if png is None and scan is None:
        return None
    if png is None:
        assert scan is not None
        with tempfile.TemporaryDirectory() as folder:
            path = save_figure(
                Path(folder) / "figure.png",
                scan,
                saved.saliency,
                saved.region,
                saved.target,
                title=f"Why did the network draw the {name} here?",
                modality=record["input"]["modality"],
                target_label=_target_label(record),
                region_label=METHODS[record["parameters"]["method"]].captions.region,
                pieces=METHODS[record["parameters"]["method"]].captions.pieces,
                saliency_label=_saliency_label(record),
            )
            png = path.read_bytes()
    return Section(
        "Three planes",
        picture=Picture(
            png,
            f"Axial, coronal and sagittal plane through the {name}: above the scan with the outlines of the network's "
            "drawing and of the region, below the same with the map around the drawing and within it in colours.",
            "The planes go through the strongest effect near the structure, of its surroundings where they have one. "
            "Each row of colours has its own scale. Radiological view: the patient's right is on the left of the "
            "picture.",
        ),
    )


def _slices(saved: SavedExplanation, scan: sitk.Image | None) -> Section:
    title = "Slices with the largest effect"
    if scan is None:
        return Section(
            title,
            [
                "The scan was not at hand when this report was made, and the folder of the explanation does not hold "
                "it: name it with --volume to see slices here."
            ],
        )
    record, name = saved.record, saved.record["target"]["name"]
    png, count = charts.montage(
        scan,
        saved.saliency,
        saved.region,
        saved.target,
        modality=record["input"]["modality"],
        label=_saliency_label(record),
        target_label=_target_label(record),
        pieces=METHODS[record["parameters"]["method"]].captions.pieces,
    )
    return Section(
        title,
        picture=Picture(
            png,
            f"{count} axial slices with the map in colours and the outline of the {name}.",
            f"The {count} axial slices with most of the effect, from head to foot. Positions are in mm as 3D Slicer "
            "shows them.",
        ),
    )


def _structures(record: Mapping[str, Any]) -> Section | None:
    rows = record["measurements"].get("structures")
    if not rows:
        return None
    name, left_out = (
        record["target"]["name"],
        [str(structure) for structure in record["measurements"].get("not_removed") or []],
    )
    return Section(
        "What it leans on",
        [
            "Each structure in the table was removed in turn: those that the network drew in or across the region, and "
            f"the rest of the body. The more of the score of the {name} is lost, the more it leans on that structure; "
            "below 0, removing it helped.",
            *([f"Not removed, as they lie outside the region: {', '.join(left_out)}."] if left_out else []),
        ],
        Picture(
            charts.structures(rows, name),
            f"Bars: the score of the {name} lost by the removal of each structure; the numbers are in the table.",
        ),
        Table(
            [(row["structure"], f"{row['volume_ml']:.0f} ml", _signed(row["score_lost"])) for row in rows],
            ("Structure", "Volume", "Score lost"),
        ),
    )


def _context(record: Mapping[str, Any]) -> Section | None:
    """What the surroundings are owed, by structure, where the method tells it."""
    rows, name = record["measurements"].get("context_credits"), record["target"]["name"]
    if not rows:
        return None
    whole = _float(record["measurements"], "score_change") or 0.0
    return Section(
        "What it leans on around the drawing",
        [
            f"The credit of all that lies around the {name}, by what the network itself drew there. Below 0, the score "
            "would be higher without it. The numbers add up to the credit of the surroundings.",
        ],
        table=Table(
            [
                (
                    row["structure"],
                    f"{row['volume_ml']:.0f} ml",
                    _signed(row["credit"]),
                    f"{_signed(100 * row['credit'] / whole, 1)}%" if whole else "",
                )
                for row in rows
            ],
            ("Structure", "Volume", "Credit", "Share of the score"),
        ),
    )


def _key_regions(record: Mapping[str, Any]) -> Section | None:
    """How little suffices, and how little is necessary, where it was measured."""
    regions, name = record["key_regions"], record["target"]["name"]
    if regions is None:
        return None
    keeps, costs = regions["keeps"], regions["costs"]
    words = {
        "sufficient": (
            f"Enough for {keeps:.0%} of the score, with all else hidden",
            "sufficient.nrrd",
        ),
        "necessary": (f"Enough to lose {costs:.0%} of it, with nothing else hidden", "necessary.nrrd"),
    }
    rows = []
    for kind, (what, file) in words.items():
        for order, told in (("map", f"in the order of the map ({file})"), ("outline", "in the order of the outline")):
            region = regions[kind][order]
            held = ("there is none: even with all hidden the network goes on drawing", "", "")
            if region is not None:
                held = (f"{region['volume_ml']:.0f} ml", f"{region['in_target_ml']:.0f} ml", f"{region['score']:.3f}")
            rows.append((f"{what}, {told}", *held))
    return Section(
        "How much of the scan it takes",
        [
            "Cubes of 12 mm were taken in the order of the map until they were enough; each number is verified by a "
            "score of its own. They are the fewest in this order, and others may do with less. The order of the "
            f"outline is what anybody would try who sees nothing but the drawing: the middle of the {name} first, then "
            "the nearest around it. A map that says more than the outline takes less of the scan.",
            f"With nothing shown but the {name} itself, the score is {regions['target_shown_alone']:.3f}; with nothing "
            f"hidden but the {name}, {regions['target_hidden_alone']:.3f}.",
        ],
        table=Table(rows, ("What", "Volume", f"Of it in the {name}", "Score")),
    )


def _faithfulness(record: Mapping[str, Any]) -> Section:
    faithfulness, name = record["faithfulness"], record["target"]["name"]
    title = "Is the map faithful to the network?"
    if faithfulness is None:
        return Section(
            title,
            [
                "This was not checked. To know it, parts of the scan have to be hidden in the order of the map and in "
                "that of maps that know nothing of the network: xaiclip explain … --check."
            ],
        )
    rows = [("this map", *_areas(faithfulness["map"]))]
    rows += [
        (charts.CONTROL_STYLES.get(key, ("", "", key))[2], *_areas(c)) for key, c in faithfulness["controls"].items()
    ]
    leads = [lead for lead in faithfulness["lead"].values() if lead is not None]
    paragraphs = [
        "Cubes of 12 mm were hidden in the order of the map, the brightest first, and in another run shown in that "
        "order, with all else that was tried hidden. A map that tells what the network leans on makes the drawing "
        "vanish sooner, and come back sooner, than orders that know nothing of the network: chance, edges of the scan, "
        "and what everybody sees already: the drawing itself, its depth, its border, and the middle of what was tried."
    ]
    if leads:
        lead = sum(leads) / len(leads)
        paragraphs.append(
            f"The map {'leads the best of them by' if lead > 0 else 'lies behind the best of them by'} {abs(lead):.3f} "
            "on a scale on which chance is 0 and an ideal order 1; a lead of 0.1 and less may be luck."
        )
    all_hidden = faithfulness["map"]["deletion"]["scores"][-1]
    all_shown = faithfulness["map"]["insertion"]["scores"][-1]
    if all_hidden > HALLUCINATES * all_shown:
        paragraphs.append(
            f"Even with all of it hidden, the score is still {all_hidden:.2f} of {all_shown:.2f}: the network goes on "
            "drawing what it cannot see, so that these curves say little. Another way of hiding may say more."
        )
    stability = record["stability"] or {}
    change = stability.get("max_sensitivity")
    if isinstance(change, (int, float)):
        paragraphs.append(
            f"With a little noise in the scan, less than a reader would see, the map changed by {change:.0%} of its "
            "size."
        )
    return Section(
        title,
        paragraphs,
        Picture(
            charts.curves(faithfulness, name),
            "Deletion and insertion curves of the map and of the controls; their areas are in the table.",
        ),
        Table(rows, ("Order", "Area while hiding (low is good)", "Area while showing (high is good)")),
    )


def _reading(record: Mapping[str, Any]) -> Section:
    name, method = record["target"]["name"], record["parameters"]["method"]
    captions = METHODS[method].captions
    if captions.value:
        first = (
            f"The colour of a place says how much of the score was lost when it was hidden ({captions.value}). Bright: "
            f"without this, the network would have drawn another {name}. Blue, where there is any: hiding it helped."
        )
    elif "credit_of_organ" in record["measurements"]:
        edge = _float(record["parameters"], "detail_mm")
        first = (
            f"The colour of a place is the credit of the cube{f' of {edge:g} mm' if edge else ''} around it: how "
            f"much of the score the network owes to it. The credits of the {name} and of all around it add up to what "
            "the score would lose with the whole scan. Warm: the place speaks for the drawing; blue: against it. What "
            f"lies around the {name} is the news, for the {name} itself is nearly always owed most."
        )
    else:
        first = (
            "The colours are those of a gradient method: attributions on a scale of their own, and not score lost. "
            "They compare places within this map and nothing else."
        )
    tried = (
        "Structures were removed whole, also where they reach out of the region; those that lie outside it were not "
        "removed, and have no colour for that reason."
        if "structures" in record["measurements"]
        else "Outside the region nothing was tried (of occlusion, nothing beyond one cube around it): no colour there "
        "means not tried, and not unimportant."
        if captions.value
        else "The gradients are those of all that the network sees around the target; the region plays no part in them."
    )
    return Section(
        "How to read it",
        bullets=[
            first,
            f"The score says how well the network still draws the same {name} as on the whole scan. It does not say "
            "that the drawing is right, and a bright place is no finding: it tells about the network and not about "
            "the patient.",
            tried,
            "Region and drawing come from two models. Where they disagree, one of the two is wrong.",
            f"Colour beside the {name} is context that the network uses. Within about half the size of "
            f"{'what was hidden' if captions.value else 'a cube'} it may also be blur of the method.",
            "Compare numbers with what chance would give: both are told wherever there are both.",
        ],
    )


def _limits() -> Section:
    return Section(
        "Limits",
        bullets=[
            "A scan with a hidden part is unlike anything the network was trained on; another way of hiding gives "
            "another map.",
            "Effects of places that only matter together, or can stand in for each other, are not told apart by hiding "
            "one after the other.",
            "Whether a scan is CT or MR is guessed from its grey values where the user did not say it.",
            "Checks that raise no warning do not make a map true.",
        ],
    )


def _provenance(record: Mapping[str, Any]) -> Section:
    scan = record["input"]
    size, spacing = " × ".join(f"{n:g}" for n in scan["size"]), " × ".join(f"{s:g}" for s in scan["spacing_mm"])
    rows = [
        ("Scan", f"{scan['modality'] or 'unknown kind'}; {size} voxels of {spacing} mm"),
        ("Voxels of the scan (SHA-256)", scan["voxels_sha256"]),
    ]
    for role, model in (
        ("Network", record["models"]["segmenter"]),
        ("Image-text model", record["models"]["localizer"]),
    ):
        rows += [(f"{role}: {key}", value) for key, value in _flat(model or {})]
    rows += [(f"Parameter: {key}", value) for key, value in _flat(record["parameters"]) if key != "described"]
    rows.append(("Versions", ", ".join(f"{key} {value}" for key, value in _flat(record["versions"]))))
    rows.append(("Time", ", ".join(f"{key} {value} s" for key, value in _flat(record["timings_s"]))))
    for key in ("perturbations", "patches_computed", "patches_full_inference_would_compute"):
        if (value := _float(record["measurements"], key)) is not None:
            rows.append((_words(key).capitalize(), f"{value:.0f}"))
    return Section(
        "Provenance",
        ["What another person needs to make the same map of the same scan. The scan is known by its checksum alone."],
        table=Table(rows),
        page=True,
    )


def _checksums(saved: SavedExplanation) -> Section | None:
    if not saved.checksums:
        return None  # it was not saved in files
    return Section("Files of the explanation (SHA-256)", table=Table(list(saved.checksums.items())))


# --- words --------------------------------------------------------------------------------------------------------


def _saliency_label(record: Mapping[str, Any]) -> str:
    parameters = record["parameters"]
    captions = METHODS[parameters["method"]].captions
    return captions.of_colours(parameters["score"], parameters.get("effect", "total"))


def _target_label(record: Mapping[str, Any]) -> str:
    return "Given mask" if record["target"]["voxels"] == "given" else "Predicted target"


def _model(model: Mapping[str, Any]) -> str:
    known = [str(model["name"]) if "name" in model else "unknown"]
    known += [
        f"{word} {model[key]}" for key, word in (("version", "version"), ("licence", "licence")) if model.get(key)
    ]
    return ", ".join(known)


def _areas(curves: Mapping[str, Any]) -> tuple[str, str]:
    return f"{curves['deletion']['area']:.3f}", f"{curves['insertion']['area']:.3f}"


def _signed(value: float, decimals: int = 3) -> str:
    rounded = round(value, decimals)
    return f"{rounded:+.{decimals}f}".replace("-", "−") if rounded else f"{0:.{decimals}f}"  # no zero has a sign


def _float(values: Mapping[str, Any], key: str) -> float | None:
    """The number under a key; None where there is none."""
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _words(key: str) -> str:
    unit = " (mm)" if key.endswith("_mm") else ""
    return key.removesuffix("_mm").replace("_", " ") + unit


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    """Names and values of a mapping and of the mappings within it; entries without a value are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{_words(str(key))}, ")
        elif value is not None:
            shown = f"{value:.6g}" if isinstance(value, float) else "yes" if value is True else str(value)
            yield before + _words(str(key)), "no" if value is False else shown


def without_paths(text: str) -> str:
    """Text without paths, which may name a patient."""
    return _PATH.sub("(a path)", text)


def _clean(document: Document) -> Document:
    """The document without paths, which may name a patient."""

    def section(part: Section) -> Section:
        table = part.table and Table(
            [[without_paths(cell) for cell in row] for row in part.table.rows], part.table.header
        )
        return Section(
            part.title,
            [without_paths(p) for p in part.paragraphs],
            part.picture,
            table,
            [without_paths(b) for b in part.bullets],
            part.page,
        )

    return Document(
        without_paths(document.title),
        without_paths(document.subtitle),
        document.notice,
        [without_paths(sentence) for sentence in document.cautions],
        document.without_cautions,
        [section(part) for part in document.sections],
    )
