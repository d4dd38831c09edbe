"""The anatomy vocabulary: its data are sound, prompts mean what they say, and class names are understood."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from XAICLIPLib import anatomy
from XAICLIPLib.anatomy import SIDES, Code, Structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.resources import resource_path

# Class names of TotalSegmentator (v1 `total`, v2 `total`, `total_mr`) and the structures that they mean.
SAME = """
    spleen gallbladder liver stomach pancreas esophagus trachea thyroid_gland small_bowel duodenum colon
    urinary_bladder prostate sacrum heart aorta brachiocephalic_trunk superior_vena_cava inferior_vena_cava
    spinal_cord brain skull sternum costal_cartilages pulmonary_artery face vertebrae intervertebral_discs
""".split()
PAIRED = {name: name.replace("_", " ") for name in "kidney adrenal_gland humerus scapula femur kidney_cyst".split()}
PAIRED |= {name: name.replace("_", " ") for name in "subclavian_artery common_carotid_artery lung".split()}
PAIRED |= {name: name.replace("_", " ") for name in "brachiocephalic_vein atrial_appendage".split()}
PAIRED |= {name: name.replace("_", " ") for name in "gluteus_maximus gluteus_medius gluteus_minimus".split()}
PAIRED |= {
    "clavicula": "clavicle",
    "hip": "hip bone",
    "autochthon": "deep back muscle",
    "iliopsoas": "iliopsoas muscle",
}
PAIRED |= {"iliac_artery": "common iliac artery", "iliac_vena": "common iliac vein"}
PAIRED |= {"heart_atrium": "atrium", "heart_ventricle": "ventricle"}
PAIRED |= {f"lung_{part}_lobe": f"{part} lung lobe" for part in ("upper", "middle", "lower")}
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
VERTEBRAE = [f"{letter}{n}" for letter, count in (("C", 7), ("T", 12), ("L", 5), ("S", 1)) for n in range(1, count + 1)]

TOTALSEGMENTATOR = {name: name.replace("_", " ") for name in SAME}
TOTALSEGMENTATOR |= {f"{old}_{side}": f"{side} {new}" for old, new in PAIRED.items() for side in SIDES}
TOTALSEGMENTATOR |= {f"rib_{side}_{n}": f"{side} {o} rib" for n, o in enumerate(ORDINALS, 1) for side in SIDES}
TOTALSEGMENTATOR |= {f"vertebrae_{v}": f"{v} vertebra" for v in VERTEBRAE}
TOTALSEGMENTATOR |= {"pulmonary_vein": "pulmonary veins", "heart_myocardium": "myocardium"}
TOTALSEGMENTATOR |= {"portal_vein_and_splenic_vein": "portal and splenic veins"}
for nobody_has in ("lung_middle_lobe_left", "atrial_appendage_right"):
    del TOTALSEGMENTATOR[nobody_has]

PROMPTS = {
    # case, punctuation, filler words
    "Liver": "liver",
    "  the liver. ": "liver",
    "show me the liver": "liver",
    "Where is the spleen?": "spleen",
    "please segment the patient's pancreas": "pancreas",
    "segment 4 of the liver": "liver segment 4",
    "urinary_bladder": "urinary bladder",
    "bladder": "urinary bladder",
    # sides, anywhere and in any form
    "left kidney": "left kidney",
    "kidney left": "left kidney",
    "kidney, left": "left kidney",
    "renal, left": "left kidney",
    "L kidney": "left kidney",
    "lt. kidney": "left kidney",
    "Kidney (R)": "right kidney",
    "right-sided kidney": "right kidney",
    "RightKidney": "right kidney",
    "rightkidney": "right kidney",
    "rkidney": "right kidney",
    "left adrenal": "left adrenal gland",
    "left lung's upper lobe": "left upper lung lobe",
    "left lower lobe": "left lower lung lobe",
    "left rib 3": "left third rib",
    "3rd rib on the left": "left third rib",
    # groups
    "kidney": "kidneys",
    "kidneys": "kidneys",
    "bilateral kidneys": "kidneys",
    "left and right kidney": "kidneys",
    "lung": "lung",
    "both lungs": "lung",
    "ribs": "ribs",
    "left ribs": "left ribs",
    "vertebra": "vertebrae",
    "backbone": "spine",
    "salivary glands": "salivary glands",
    # adjectives and generic words
    "hepatic": "liver",
    "hepatic parenchyma": "liver",
    "renal tissue": "kidneys",
    "adrenals": "adrenal glands",
    # synonyms, spelling, word order
    "hepar": "liver",
    "vesica biliaris": "gallbladder",
    "gall bladder": "gallbladder",
    "oesophagus": "esophagus",
    "caecum": "cecum",
    "grey matter": "gray matter",
    "head of the pancreas": "pancreas head",
    "shoulder blades": "scapulae",
    "left femora": "left femur",
    "vena cava inferior": "inferior vena cava",
    "splenic vein and portal vein": "portal and splenic veins",
    "splenic vein": "splenic vein",
    "left ventricle": "left ventricle",
    "left lateral ventricle": "left lateral ventricle",
    # typing errors
    "livr": "liver",
    "splean": "spleen",
    "pancras": "pancreas",
    "gallblader": "gallbladder",
    "left kindey": "left kidney",
    "rigth kidney": "right kidney",
    "prostrate": "prostate",
    "hipocampus": "hippocampus",
    "oesophogus": "esophagus",
    "arota": "aorta",
    # class names of other networks
    "Left Kideny": "left kidney",
    "lkid": "left kidney",
    "LAG": "left adrenal gland",
    "IVC": "inferior vena cava",
    "postcava": "inferior vena cava",
    "Parotid_L": "left parotid gland",
    "SpinalCord": "spinal cord",
    "LeftParotid": "left parotid gland",
    "Left-Thalamus-Proper": "left thalamus",
    "Left-Accumbens-area": "left nucleus accumbens",
    "Right-Cerebral-White-Matter": "right cerebral white matter",
    "Left-Inf-Lat-Vent": "left inferior horn of the lateral ventricle",
    "3rd-Ventricle": "third ventricle",
    "CSF": "cerebrospinal fluid",
    "L5": "L5 vertebra",
    "hippocampus_anterior": "anterior hippocampus",
}

FREE_TEXT = [
    # nothing to go by
    *["", " ", "?!", "the", "left", "left side", "both", "organ", "123", "肝臓"],
    # other words, however near
    *[
        "lover",
        "river",
        "live",
        "unicorn",
        "heat",
        "spin",
        "rain",
        "campus",
        "hypothesis",
        "cardia",
        "interior vena cava",
    ],
    # findings in a structure are not the structure
    *[
        "tumor in the liver",
        "liver tumour",
        "hepatic lesion",
        "liver metastasis",
        "liver cyst",
        "renal mass",
        "kidney stone",
    ],
    *["fatty liver", "left kidney and tumor", "fluid around the heart", "air in the lung"],
    # a word too many, or two structures
    *[
        "not the liver",
        "liver and spleen",
        "prostate/uterus",
        "liver bed",
        "stomach wall",
        "rib 13",
        "veins",
        "ventricle",
    ],
    # sides that do not exist
    *["left liver", "right spleen", "both livers", "left brain", "left middle lobe", "right aorta", "left L1"],
    # a side that would have to be guessed
    *["middle lobe", "atrial appendage"],
]


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return list(anatomy.vocabulary().values())


def name_of(prompt: str) -> str | None:
    found = anatomy.resolve(prompt)
    return found.name if found else None


# --- the data ---------------------------------------------------------------------------------


def test_file_is_one_structure_a_line() -> None:
    lines = resource_path("anatomy.json").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith('{"name"')]
    data = json.loads("\n".join(lines))
    assert [json.loads(row.rstrip(","))["name"] for row in rows] == [s["name"] for s in data["structures"]]
    allowed = set("name both side synonyms adjectives aliases category modalities snomed modifier region".split())
    assert set().union(*data["structures"]) <= allowed | {"size_mm", "volume_ml", "members"}
    assert data["about"]


def test_names_are_unique_and_lower_case(structures: list[Structure]) -> None:
    data = json.loads(resource_path("anatomy.json").read_text(encoding="utf-8"))
    assert len(structures) == sum(3 if "both" in line else 1 for line in data["structures"])
    for s in structures:
        words = [word for word in s.name.split() if word not in VERTEBRAE]
        assert words == [word.lower() for word in words]
        assert anatomy.structure(s.name) is s


def test_no_phrase_belongs_to_two_structures(structures: list[Structure]) -> None:
    count = Counter(phrase.lower() for s in structures for phrase in s.phrases)
    assert [phrase for phrase, n in count.items() if n > 1] == []


def test_every_phrase_alias_and_adjective_means_its_own_structure(structures: list[Structure]) -> None:
    wrong = {
        text: (s.name, name_of(text))
        for s in structures
        for text in (*s.phrases, *s.aliases, *s.adjectives)
        if name_of(text) != s.name
    }
    assert wrong == {}


def test_members_exist_and_no_structure_contains_itself(structures: list[Structure]) -> None:
    for s in structures:
        for member in s.members:
            assert s.name not in anatomy.parts(anatomy.structure(member)), s.name


def test_parts_of_one_side_lie_on_that_side(structures: list[Structure]) -> None:
    for s in structures:
        if s.side:
            assert {anatomy.structure(part).side for part in anatomy.parts(s)} == {s.side}, s.name


def test_sides_mirror_each_other(structures: list[Structure]) -> None:
    single = {"left atrial appendage", "right middle lung lobe"}
    for s in structures:
        if s.side and s.name not in single:
            other = anatomy.structure(s.name.replace(s.side, {"left": "right", "right": "left"}[s.side], 1))
            assert (other.size_mm, len(other.phrases)) == (s.size_mm, len(s.phrases))
            assert other.modifier != s.modifier or "atrium" in s.name or "ventricle" in s.name


def test_codes_are_snomed_identifiers(structures: list[Structure]) -> None:
    for s in structures:
        for code in (s.category, s.snomed, s.modifier, s.region):
            assert code is None or (
                code.scheme == "SCT" and 5 < len(code.value) < 19 and code.value.isdigit() and code.meaning
            )
    lacking = {s.name for s in structures if s.snomed is None and s.side is None}
    assert len(lacking) <= 15, lacking


@pytest.mark.parametrize(
    ("name", "snomed", "modifier"),
    [
        ("liver", "10200004", None),
        ("left kidney", "64033007", "7771000"),
        ("right kidney", "64033007", "24028007"),
        ("kidneys", "64033007", "51440002"),
        ("left atrium", "82471001", None),
        ("T12 vertebra", "23215003", None),
        ("left first rib", "48535007", "7771000"),
        ("portal and splenic veins", "110765007", None),
    ],
)
def test_codes_are_those_of_slicer_and_totalsegmentator(name: str, snomed: str, modifier: str | None) -> None:
    found = anatomy.structure(name)
    assert found.category == Code("SCT", "123037004", "Anatomical Structure")
    assert found.snomed is not None and found.snomed.value == snomed
    assert (found.modifier.value if found.modifier else None) == modifier


def test_a_cyst_is_coded_as_a_finding_in_its_organ() -> None:
    cyst = anatomy.structure("left kidney cyst")
    assert cyst.category.value == "49755003"
    assert cyst.region == Code("SCT", "64033007", "Kidney")


def test_sizes_are_plausible(structures: list[Structure]) -> None:
    assert all(5 <= s.size_mm <= 2000 for s in structures)
    for s in structures:
        for member in s.members:
            assert anatomy.structure(member).size_mm <= s.size_mm, (s.name, member)


@pytest.mark.parametrize(
    ("name", "woman", "man"),
    [
        ("liver", 1400, 1800),
        ("spleen", 130, 150),
        ("left kidney", 138, 155),
        ("right kidney", 138, 155),
        ("kidneys", 275, 310),
        ("pancreas", 120, 140),
        ("gallbladder", 56, 68),
        ("stomach", 370, 400),
        ("left adrenal gland", 6.5, 7),
        ("brain", 1300, 1450),
        ("heart", 620, 840),
        ("thyroid gland", 17, 20),
        ("esophagus", 35, 40),
        ("left eye", 7.5, 7.5),
    ],
)
def test_volumes_are_wide_bounds_around_the_reference_adults(name: str, woman: float, man: float) -> None:
    """Masses in g of ICRP Publication 89."""
    bounds = anatomy.structure(name).volume_ml
    assert bounds is not None
    assert bounds[0] <= 0.6 * woman and 1.7 * man <= bounds[1] <= 25 * man


def test_a_structures_volume_can_be_that_of_its_parts(structures: list[Structure]) -> None:
    for s in structures:
        if s.volume_ml is not None:
            assert 0 < s.volume_ml[0] < s.volume_ml[1]
            of_parts = [v for v in (anatomy.structure(member).volume_ml for member in s.members) if v is not None]
            assert all(part[1] <= s.volume_ml[1] for part in of_parts), s.name
    left, both = anatomy.structure("left kidney").volume_ml, anatomy.structure("kidneys").volume_ml
    assert left is not None and both == (2 * left[0], 2 * left[1])


def test_modalities(structures: list[Structure]) -> None:
    assert all(s.modalities and s.modalities <= {"CT", "MR"} for s in structures)
    assert anatomy.structure("left hippocampus").modalities == {"MR"}
    assert anatomy.structure("costal cartilages").modalities == {"CT"}


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "name"), PROMPTS.items())
def test_prompt_means_the_structure(prompt: str, name: str) -> None:
    assert name_of(prompt) == name


@pytest.mark.parametrize("prompt", FREE_TEXT)
def test_free_text_means_no_structure(prompt: str) -> None:
    assert name_of(prompt) is None


def test_every_totalsegmentator_class_is_known() -> None:
    assert {name: name_of(name) for name in TOTALSEGMENTATOR} == TOTALSEGMENTATOR
    for name in TOTALSEGMENTATOR:
        side = next((side for side in SIDES if side in name), None)
        assert anatomy.structure(TOTALSEGMENTATOR[name]).side == side


def test_the_table_of_class_names_is_complete(shared_data: Path) -> None:
    labels = json.loads((shared_data / "totalseg" / "labels.json").read_text(encoding="utf-8"))
    assert {name for classes in labels.values() for name in classes.values()} <= set(TOTALSEGMENTATOR)


def test_a_finding_makes_any_prompt_free_text(structures: list[Structure]) -> None:
    for s in structures:
        for finding in ("tumor", "lesion", "metastasis", "nodule", "abscess"):
            assert name_of(f"{s.name} {finding}") is None
            assert name_of(f"{finding} in the {s.name}") is None


@pytest.mark.parametrize("form", ["{}", "{0} of the patient", "{}s", "{}_", "THE {}"])
def test_side_is_never_flipped_dropped_or_invented(form: str, structures: list[Structure]) -> None:
    opposite = {"left": "right", "right": "left"}
    for s in structures:
        for phrase in s.phrases:
            asked = [side for side in SIDES if side in phrase.split()]
            found = anatomy.resolve(form.format(phrase))
            assert found is None or asked == ([found.side] if found.side else []), phrase
        if s.side:
            swapped = anatomy.resolve(s.name.replace(s.side, opposite[s.side]))
            assert swapped is None or swapped.side == opposite[s.side]


def test_side_stays_through_typing_errors(structures: list[Structure]) -> None:
    """One letter left out, anywhere in the name of a structure with a side."""
    for s in [s for s in structures if s.side]:
        for cut in range(len(s.name)):
            found = anatomy.resolve(s.name[:cut] + s.name[cut + 1 :])
            if found is not None and found.side != s.side:
                pytest.fail(f"{s.name!r} without letter {cut} became {found.name!r}")


def test_unknown_name_is_an_error_with_suggestions() -> None:
    with pytest.raises(InputError, match=r"livver.*nearest names are.*liver"):
        anatomy.structure("livver")


def test_suggestions_keep_the_side_and_say_nothing_about_nonsense() -> None:
    assert anatomy.suggestions("tumor in the liver")[0] == "liver"
    near = anatomy.suggestions("left kidney", count=len(anatomy.vocabulary()))
    assert near[0] == "left kidney"
    assert not any(name.startswith("right") for name in near)
    assert anatomy.suggestions("xyz") == []
    assert anatomy.suggestions("") == []


# --- networks ---------------------------------------------------------------------------------

LABELS = {
    0: "background",
    1: "liver",
    2: "kidney_right",
    3: "Left Kidney",
    4: "lung_upper_lobe_left",
    5: "hepatic vein",
}
LABELS |= {6: "lung_lower_lobe_right", 7: "liver_tumor", 8: "rib_left_1", 9: "rib_right_12", 10: "kidney_cyst_left"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("liver", [1]),
        ("left kidney", [3]),
        ("kidneys", [2, 3]),
        ("left lung", [4]),
        ("lung", [4, 6]),
        ("lung lobes", [4, 6]),
        ("ribs", [8, 9]),
        ("left ribs", [8]),
        ("bone", [8, 9]),
        ("left kidney cyst", [10]),
        ("spleen", []),
    ],
)
def test_label_of_a_structure(name: str, found: list[int]) -> None:
    assert anatomy.match_label(anatomy.structure(name), LABELS) == found


def test_a_class_without_side_is_not_one_of_the_two() -> None:
    unsided = {1: "kidney"}
    assert anatomy.match_label(anatomy.structure("left kidney"), unsided) == []
    assert anatomy.match_label(anatomy.structure("kidneys"), unsided) == [1]


@pytest.mark.parametrize(
    "style", ["kidney_left", "Left Kidney", "LK", "LeftKidney", "left-kidney", "Kidney_L", "renal, left"]
)
def test_labels_in_any_style(style: str) -> None:
    assert anatomy.match_label(anatomy.structure("left kidney"), {7: style}) == [7]
    assert anatomy.match_label(anatomy.structure("right kidney"), {7: style}) == []


def test_every_totalsegmentator_class_finds_its_own_label() -> None:
    labels = dict(enumerate(TOTALSEGMENTATOR, 1))
    for label, name in labels.items():
        assert label in anatomy.match_label(anatomy.structure(TOTALSEGMENTATOR[name]), labels)


# --- sentences --------------------------------------------------------------------------------


def test_texts_are_templates_times_phrases() -> None:
    liver = anatomy.structure("liver")
    for modality in ("CT", "MR", None):
        templates = anatomy.templates(modality)
        assert len(templates) == len(set(templates)) == 8
        assert all(t.count("{}") == 1 for t in templates)
        assert len(anatomy.texts(liver, modality)) == 8 * len(liver.phrases)
    assert "a CT slice showing the hepar" in anatomy.texts(liver, "CT")
    assert anatomy.texts("tumor in the liver", None)[-1] == "the tumor in the liver"


def test_background_is_no_structure() -> None:
    phrases = anatomy.background_phrases()
    assert len(set(phrases)) == len(phrases) >= 5
    assert [p for p in phrases if anatomy.resolve(p)] == []


def test_vocabulary_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        anatomy.vocabulary()["liver"] = None  # type: ignore[index]


@pytest.mark.parametrize("prompt", ["left kideny", "livr", "show me the pancras"])
def test_a_corrected_typing_error_is_known_to_be_one(prompt: str) -> None:
    assert anatomy.resolve(prompt) is not None
    assert not anatomy.is_spelled_right(prompt)


@pytest.mark.parametrize("prompt", ["left kidney", "Kidney_left", "lkidney", "renal, left", "kidneys", "bright spot"])
def test_other_spellings_and_unknown_words_are_no_typing_errors(prompt: str) -> None:
    assert anatomy.is_spelled_right(prompt)


@pytest.mark.parametrize(("words", "meant"), [("spleeen", "spleen"), ("Livvver", "liver"), ("bright spot", None)])
def test_what_is_not_understood_but_like_a_name_is_suggested(words: str, meant: str | None) -> None:
    assert anatomy.resolve(words) is None
    assert anatomy.closest_structure(words) == meant


def test_slips_are_counted_as_rapidfuzz_counts_them() -> None:
    from rapidfuzz.distance import OSA

    words = sorted(anatomy._index().known)[::7]
    for word, other in itertools.product([*words, "kindey", "livre", "pancraes", "vertebre"], words):
        assert anatomy._slips(word, other) == min(OSA.distance(word, other), anatomy.MANY_SLIPS), (word, other)


def test_what_a_text_means_is_found_without_any_package() -> None:
    code = (
        "import sys; sys.modules['rapidfuzz'] = None\n"
        "from XAICLIPLib import anatomy\n"
        "print([(found := anatomy.resolve(w)) and found.name for w in ('hepar', 'left kindey', 'qwertz')])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "['liver', 'left kidney', None]"


def test_a_class_of_two_structures_together_is_known_as_such() -> None:
    labels = {1: "Portal and Splenic Veins", 2: "liver", 3: "kidneys", 4: "trachea and bronchi", 5: "bowel"}
    for name in ("portal vein", "splenic vein"):
        together = anatomy.joint_labels(anatomy.structure(name), labels)
        assert {label: s.name for label, s in together.items()} == {1: "portal and splenic veins"}
    for name in ("left kidney", "liver", "colon"):
        assert anatomy.joint_labels(anatomy.structure(name), labels) == {}, "sides, and groups, are not such pairs"
