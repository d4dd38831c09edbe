"""Anatomical structures and the words for them: which structure a prompt or a network's class name means.

The vocabulary itself is data: ``Resources/anatomy.json``. A prompt becomes a set of words and a
side; it means a structure only if every word of it is accounted for and the side is the same.

What a text means is found with the standard library alone, so that 3D Slicer's panel can ask before any package is
installed; what it may have meant (`closest_structure`, `suggestions`) needs rapidfuzz.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import dropwhile
from types import MappingProxyType
from typing import Any, Literal

from XAICLIPLib.errors import InputError
from XAICLIPLib.resources import resource_path

Modality = Literal["CT", "MR"]
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")


@dataclass(frozen=True)
class Code:
    """A coded concept, as in DICOM and 3D Slicer's terminologies.

    Parameters
    ----------
    scheme : str
        Coding scheme: ``SCT``, SNOMED CT.
    value : str
        The code.
    meaning : str
        Its words.
    """

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Structure:
    """One anatomical structure, tissue or group of them.

    Parameters
    ----------
    name : str
        Natural lower-case English, such as "left kidney"; unique.
    synonyms : tuple of str
        Other words that may take the name's place in a sentence.
    adjectives : tuple of str
        Words that mean it in a prompt but not in a sentence: "renal".
    aliases : tuple of str
        Class names that networks use and that the words above do not give.
    side : {"left", "right"} or None
        Its side; None for unpaired structures and for groups of both sides.
    modalities : frozenset of {"CT", "MR"}
        Where it is commonly segmented.
    category, snomed, modifier, region : Code or None
        Category, type, laterality and anatomic region for a segment's terminology. The laterality
        is the region's where there is one. `snomed` is None where no code could be verified.
    size_mm : float
        Typical largest extent in an adult.
    members : tuple of str
        Names of the structures that it consists of; empty for most.
    volume_ml : tuple of float, or None
        The least and the most that an adult's may have, within wide bounds (the vocabulary says by which source); None
        where that is not known.
    """

    name: str
    synonyms: tuple[str, ...]
    adjectives: tuple[str, ...]
    aliases: tuple[str, ...]
    side: Side | None
    modalities: frozenset[Modality]
    category: Code
    snomed: Code | None
    modifier: Code | None
    region: Code | None
    size_mm: float
    members: tuple[str, ...]
    volume_ml: tuple[float, float] | None = None

    @property
    def phrases(self) -> tuple[str, ...]:
        """Words for it that fit "a CT slice showing the {}", its name first."""
        return (self.name, *self.synonyms)


# --- the vocabulary ---------------------------------------------------------------------------


@cache
def vocabulary() -> Mapping[str, Structure]:
    """All structures by name, in the order of ``Resources/anatomy.json``."""
    data = json.loads(resource_path("anatomy.json").read_text(encoding="utf-8"))
    structures = (s for line in data["structures"] for s in _structures(line, data))
    return MappingProxyType({s.name: s for s in structures})


def structure(name: str) -> Structure:
    """The structure of exactly this name.

    Raises
    ------
    InputError
        If there is none; the message suggests names.
    """
    match = vocabulary().get(name)
    if match is None:
        nearest = ", ".join(f'"{n}"' for n in suggestions(name))
        hint = f"the nearest names are {nearest}" if nearest else "see Resources/anatomy.json"
        raise InputError(f'No anatomical structure is called "{name}": {hint}.')
    return match


def parts(structure: Structure) -> frozenset[str]:
    """Names of a structure and of all that it consists of, down to the smallest."""
    inner = (parts(vocabulary()[member]) for member in structure.members)
    return frozenset({structure.name}).union(*inner)


def _structures(line: dict[str, Any], data: dict[str, Any]) -> Iterator[Structure]:
    """The structures of one line of the file: one, or three for a paired structure (left, right and both)."""

    def code(pair: list[str] | None) -> Code | None:
        return Code("SCT", *pair) if pair else None

    def structure_of(name: str, side: Side | None, **words: Iterable[str]) -> Structure:
        volume = line.get("volume_ml")
        if volume is not None and "both" in line and side is None:
            volume = [len(SIDES) * bound for bound in volume]
        laterality = (side or "both") if "both" in line else line.get("modifier")
        return Structure(
            name=name,
            synonyms=tuple(words["synonyms"]),
            adjectives=tuple(words["adjectives"]),
            aliases=tuple(words["aliases"]),
            side=side,
            modalities=frozenset(line.get("modalities", ("CT", "MR"))),
            category=Code("SCT", *data["categories"][line.get("category", "anatomical")]),
            snomed=code(line.get("snomed")),
            modifier=code(data["sides"].get(laterality)),
            region=code(line.get("region")),
            size_mm=float(line["size_mm"]),
            members=tuple(words["members"]),
            volume_ml=None if volume is None else (volume[0], volume[1]),
        )

    kinds = ("synonyms", "adjectives", "aliases", "members")
    words_of_line: dict[str, list[str]] = {kind: line.get(kind, []) for kind in kinds}
    name = line["name"]
    if "both" not in line:
        yield structure_of(name, line.get("side"), **words_of_line)
        return
    for side in SIDES:
        yield structure_of(
            _on_side(name, side),
            side,
            synonyms=[_on_side(s, side) for s in words_of_line["synonyms"]],
            adjectives=[_on_side(a, side) for a in words_of_line["adjectives"]],
            aliases=[_on_side(a, side, prefix=False) for a in words_of_line["aliases"] if "{" in a],
            members=[_on_side(m, side) for m in words_of_line["members"]],
        )
    group, *plurals = line["both"]
    singular = [s.replace("{side} ", "") for s in (name, *words_of_line["synonyms"])]
    yield structure_of(
        group,
        None,
        synonyms=[*plurals, *(s for s in singular if s != group)],
        adjectives=words_of_line["adjectives"],
        aliases=[a for a in words_of_line["aliases"] if "{" not in a],
        members=[_on_side(name, side) for side in SIDES],
    )


def _on_side(text: str, side: Side, prefix: bool = True) -> str:
    """A paired structure's text for one side: "renal organ" becomes "left renal organ"."""
    if "{" in text:
        return text.format(side=side, S=side[0].upper())
    return f"{side} {text}" if prefix else text


# --- prompts ----------------------------------------------------------------------------------

_SIDE_WORDS = {"l": "left", "lt": "left", "r": "right", "rt": "right", "bilateral": "both"}
_SIDE_WORDS |= {word: word for word in ("left", "right", "both")}
_IRREGULAR = {
    "atria": "atrium",
    "bronchi": "bronchus",
    "caecum": "cecum",
    "clavicula": "clavicle",
    "coeliac": "celiac",
    "cortices": "cortex",
    "disk": "disc",
    "femora": "femur",
    "grey": "gray",
    "hippocampi": "hippocampus",
    "humeri": "humerus",
    "lens": "lens",
    "menisci": "meniscus",
    "nuclei": "nucleus",
    "pelves": "pelvis",
    "phalanges": "phalanx",
    "radii": "radius",
    "testes": "testis",
    "thalami": "thalamus",
    "vena": "vein",
}
_FILLERS = frozenset(
    "a an the of in on at and my his her its this that these those s patient whole entire complete normal healthy side "
    "sided please".split()
)
_COMMANDS = frozenset(
    "show me us find locate segment outline explain highlight mark where is are can could you i want to see look for "
    "what display please".split()
)
"""Words that only introduce a structure: dropped in front of one, unknown elsewhere."""

_GENERIC = frozenset("organ parenchyma tissue region area structure".split())
"""Words that name no structure and change none: "hepatic parenchyma" is the liver."""

_NO_TYPOS = frozenset(
    "alas beast bowl bran cardia coon costa hart hear heat interior lier live moth paella plate real scrum sine spin "
    "threat toro".split()
)
"""English words that are one typing error away from a word of the vocabulary."""

_Key = tuple[frozenset[str], str | None]


def resolve(prompt: str) -> Structure | None:
    """The structure that free text means, or None.

    Case, punctuation, plurals, underscores, word order, filler words and small typing errors do not matter. Every
    other word has to be accounted for, so that "tumor in the liver" is not the liver; a side is never dropped, added or
    flipped: "kidney" is the group "kidneys".

    Parameters
    ----------
    prompt : str
        A user's words ("show me the L kidney", "renal, left") or a network's class name ("kidney_left").

    Returns
    -------
    Structure or None
        None if the text means no structure of the vocabulary for certain.
    """
    words = _words(prompt)
    bare = list(dropwhile(_COMMANDS.__contains__, words))
    name = (
        _lookup(words)
        or _index().joined.get("".join(bare))
        or _lookup([part for word in bare for part in _corrected(word)])
    )
    return vocabulary()[name] if name else None


_BETWEEN_PROMPTS = re.compile(r"(?:\s*(?:[,;&+/]|\b(?:and|plus)\b)\s*)+", re.IGNORECASE)
"""What may stand between the structures of one text."""

LONGEST_LIST = 3
"""So many pieces of a text may name one structure together: "kidney, left", "left and right kidney"."""


def prompts_in(text: str) -> tuple[str, ...]:
    """The prompts that a text consists of: "liver and left kidney" is two.

    A text that means one structure, or one group, is one prompt, and so is a text without any structure. A piece
    that means nothing is a prompt of its own where others mean something. What is named twice is there once.
    """
    ends = [(0, 0), *(match.span() for match in _BETWEEN_PROMPTS.finditer(text)), (len(text), len(text))]
    count = len(ends) - 1
    if count == 1 or resolve(text) is not None:
        return (text,)
    # The fewest prompts that leave the fewest pieces without a meaning, up to each piece.
    best: list[tuple[int, int, tuple[str, ...]]] = [(0, 0, ())]
    for last in range(1, count + 1):
        choices = []
        for first in range(max(1, last - LONGEST_LIST + 1), last + 1):
            piece = text[ends[first - 1][1] : ends[last][0]].strip()
            unknown, prompts, before = best[first - 1]
            if not piece:
                choices.append(best[first - 1])
            elif first == last or resolve(piece) is not None:
                choices.append((unknown + (resolve(piece) is None), prompts + 1, (*before, piece)))
        best.append(min(choices, key=lambda choice: choice[:2]))
    unknown, number, prompts_of_text = best[-1]
    if unknown == number:
        return (text,)
    names = {getattr(resolve(prompt), "name", prompt.lower()): prompt for prompt in reversed(prompts_of_text)}
    return tuple(reversed(names.values()))


def sides_of(prompt: str) -> tuple[str, ...]:
    """The left and the right structure of a prompt for both ("kidneys", "left and right lung"); else nothing."""
    pair = resolve(prompt)
    members = pair.members if pair else ()
    return members if sorted(str(vocabulary()[member].side) for member in members) == sorted(SIDES) else ()


def name_of(prompt: str) -> str:
    """The name of the structure that a prompt means; the prompt itself where it means none."""
    structure = resolve(prompt)
    return structure.name if structure else prompt


def has_several_pieces(text: str) -> bool:
    """Whether something in a text stands between pieces of it, such as a comma."""
    return _BETWEEN_PROMPTS.search(text) is not None


def names_several(text: str) -> bool:
    """Whether a text names several structures, or both sides of one."""
    return len(prompts_in(text)) > 1 or bool(sides_of(text))


MIN_SIMILARITY = 75
"""From 0 to 100: how similar two names must be for one to be suggested in place of the other."""


def closest_structure(words: str) -> str | None:
    """The structure whose name or synonym is most similar to words that `resolve` does not know; None if none is."""
    from rapidfuzz import fuzz, process

    phrases = {phrase: s.name for s in vocabulary().values() for phrase in (s.name, *s.synonyms)}
    best = process.extractOne(words.strip().lower(), phrases, scorer=fuzz.ratio, score_cutoff=MIN_SIMILARITY)
    return None if best is None else phrases[best[0]]


def is_spelled_right(prompt: str) -> bool:
    """False where `resolve` has to correct a typing error to find a structure."""
    words = _words(prompt)
    bare = list(dropwhile(_COMMANDS.__contains__, words))
    if _lookup(words) or "".join(bare) in _index().joined or resolve(prompt) is None:
        return True
    return all("".join(_corrected(word)) == word for word in bare)


def _lookup(words: Iterable[str]) -> str | None:
    """Name of the structure that all these words together mean; generic words are left out if necessary."""
    significant, side = _key(words)
    by_words = _index().by_words
    sought_side = None if side == "both" else side
    name = by_words.get((significant, sought_side)) or by_words.get((significant - _GENERIC, sought_side))
    if name and side == "both":
        sides = {vocabulary()[member].side for member in vocabulary()[name].members}
        return name if sides == set(SIDES) else None
    return name


def _words(text: str) -> list[str]:
    """Lower-case words of a text, CamelCase and trailing numbers split, accents dropped."""
    text = text.replace("œ", "oe").replace("æ", "ae")
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z]{3})(?=\d)", " ", text)
    return re.findall(r"[a-z0-9]+", text.lower())


def _key(words: Iterable[str]) -> _Key:
    """Significant words in the singular, and the side."""
    kept = [_singular(w) for w in words if w not in _FILLERS]
    sides = {_SIDE_WORDS[w] for w in kept if w in _SIDE_WORDS}
    side = "both" if len(sides) > 1 else next(iter(sides), None)
    return frozenset(w for w in kept if w not in _SIDE_WORDS), side


def _singular(word: str) -> str:
    """A word without its plural ending, and in American spelling."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.startswith("oe"):
        word = word[1:]
    if len(word) > 3 and word.endswith("ae"):
        word = word[:-1]
    elif len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 5 and word.endswith("ses"):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and word[-2] not in "aius":
        word = word[:-1]
    return _IRREGULAR.get(word, word)


def _corrected(word: str) -> list[str]:
    """A word as the vocabulary spells it: "lkidney" becomes two words; an ambiguous word stays as it is."""
    index = _index()
    single = _singular(word)
    if single in index.known or single in _NO_TYPOS:
        return [word]
    if word[0] in "lr" and len(single) > 4 and _singular(word[1:]) in index.known:
        return [word[0], word[1:]]
    near = [other for other in index.nouns if _is_typo(single, other)]
    return near if len(near) == 1 else [word]


def _is_typo(word: str, other: str) -> bool:
    """Whether a word is another one with a plausible typing error.

    In long words one error or two are accepted. Words of five to seven letters have too many neighbours for that
    ("lover", "campus"): accepted are a letter left out, two letters that changed places, a doubled letter and, from six
    letters on, a wrong vowel.
    """
    if word[0] != other[0] or _slips(word, other) > (2 if len(other) > 10 else 1):
        return False
    if len(other) > 7:
        return True
    return len(other) > 4 and (
        len(word) < len(other)
        or sorted(word) == sorted(other)
        or re.sub(r"(.)\1", r"\1", word) == re.sub(r"(.)\1", r"\1", other)
        or (len(other) > 5 and re.sub("[aeiouy]", "_", word) == re.sub("[aeiouy]", "_", other))
    )


MANY_SLIPS = 3
"""No typing error has so many; they are not counted further."""


def _slips(word: str, other: str) -> int:
    """How many letters were left out, added, replaced or swapped with their neighbours, up to `MANY_SLIPS`.

    The optimal string alignment distance.
    """
    if abs(len(word) - len(other)) >= MANY_SLIPS:
        return MANY_SLIPS
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(word, 1):
        before, above, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and word[i - 2] == wanted:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
        if min(row) >= MANY_SLIPS:
            return MANY_SLIPS
    return min(row[-1], MANY_SLIPS)


@dataclass(frozen=True)
class _Index:
    """The vocabulary by words.

    Parameters
    ----------
    by_words : dict
        Name by significant words and side.
    joined : dict
        Name by the words written as one: "leftkidney".
    known : frozenset of str
        Words that need no correction, in the singular.
    nouns : tuple of str
        Words of phrases, and the sides: what a word with a typing error is corrected to.
    """

    by_words: dict[_Key, str]
    joined: dict[str, str]
    known: frozenset[str]
    nouns: tuple[str, ...]


@cache
def _index() -> _Index:
    """Index phrases first, then class names, then adjectives: a text belongs to the first structure that has it."""
    by_words: dict[_Key, str] = {}
    joined: dict[str, str] = {}
    known: dict[str, set[str]] = {}
    for kind in ("phrases", "aliases", "adjectives"):
        known[kind] = set()
        for structure in vocabulary().values():
            for text in getattr(structure, kind):
                words = _words(text)
                by_words.setdefault(_key(words), structure.name)
                joined.setdefault("".join(words), structure.name)
                known[kind] |= _key(words)[0]
    nouns = (*SIDES, *sorted(known["phrases"]))
    return _Index(by_words, joined, frozenset().union(_SIDE_WORDS, _GENERIC, *known.values()), nouns)


def suggestions(prompt: str, count: int = 3) -> list[str]:
    """Names of the structures nearest to a text, best first, for error messages.

    A side in the text is kept: "left kindey thing" suggests nothing on the right.
    """
    from rapidfuzz import fuzz, process

    words, side = _key(_words(prompt))
    phrases = [
        (phrase, structure.name)
        for structure in vocabulary().values()
        if side not in SIDES or structure.side in (side, None)
        for phrase in structure.phrases
    ]
    significant = " ".join(w for w in _words(prompt) if w not in _FILLERS)
    near = process.extract(significant, [p for p, _ in phrases], scorer=fuzz.WRatio, score_cutoff=65, limit=10 * count)
    return list(dict.fromkeys(phrases[position][1] for _, _, position in near))[:count] if words else []


# --- networks ---------------------------------------------------------------------------------


def match_label(structure: Structure, labels: Mapping[int, str]) -> list[int]:
    """The labels of a network that mean a structure.

    Parameters
    ----------
    structure : Structure
        What is looked for. A group is matched by its own label and by those of its members.
    labels : mapping of int to str
        The network's class names by label, in any style: "kidney_left", "Left Kidney", "LK".

    Returns
    -------
    list of int
        Ascending; empty if no class of the network means the structure. A class without a side does not mean one of
        the two, but belongs to a structure of which both are parts.
    """
    part_names = parts(structure)
    structures = {label: resolve(name) for label, name in labels.items()}
    return sorted(label for label, match in structures.items() if match and _is_part(match, part_names))


def joint_labels(structure: Structure, labels: Mapping[int, str]) -> dict[int, Structure]:
    """The labels of a network that mean a structure together with the one beside it, such as both veins of the portal.

    Parameters
    ----------
    structure, labels
        As for `match_label`.

    Returns
    -------
    dict of int to Structure
        By label, what it means: a pair that is called by both its members' names. Left and right are no such pair.
    """
    joint = {
        s.name
        for s in vocabulary().values()
        if structure.name in s.members and len(s.members) == 2 and " and " in s.name
    }
    structures = {label: resolve(name) for label, name in labels.items()}
    return {label: match for label, match in structures.items() if match and match.name in joint}


def members_without(group: Structure, labels: Mapping[int, str]) -> list[str]:
    """Names of what a group consists of and no label means; none where a label means the group itself.

    A member of which there is nothing is named as a whole, else its parts are.
    """
    if any(getattr(resolve(name), "name", "") == group.name for name in labels.values()):
        return []
    absent: list[str] = []
    for member in map(vocabulary().__getitem__, group.members):
        absent += members_without(member, labels) if match_label(member, labels) else [member.name]
    return absent


def _is_part(structure: Structure, part_names: frozenset[str]) -> bool:
    """Whether a structure, or everything that it consists of, is among some parts."""
    return structure.name in part_names or (bool(structure.members) and part_names.issuperset(structure.members))


# --- sentences --------------------------------------------------------------------------------

_TEMPLATES: dict[Modality | None, tuple[str, ...]] = {
    "CT": (
        "a CT slice showing the {}",
        "an axial CT image of the {}",
        "a computed tomography scan of the {}",
        "the {} on CT",
        "the {} in a contrast-enhanced CT scan",
        "a cross-section through the {} on computed tomography",
        "a radiology image, CT, with the {}",
        "CT of the {}",
    ),
    "MR": (
        "an MR slice showing the {}",
        "an axial MRI of the {}",
        "a magnetic resonance image of the {}",
        "the {} on MRI",
        "the {} in a magnetic resonance scan",
        "a cross-section through the {} on magnetic resonance imaging",
        "a radiology image, MRI, with the {}",
        "MRI of the {}",
    ),
    None: (
        "a medical image showing the {}",
        "an axial slice of the {}",
        "a scan of the {}",
        "the {} in a medical scan",
        "a cross-section through the {}",
        "a radiology image with the {}",
        "an image of the {}",
        "the {}",
    ),
}


def templates(modality: Modality | None) -> list[str]:
    """Sentences with "{}" for a phrase, for an image of this modality or of an unknown one."""
    return list(_TEMPLATES[modality])


def texts(phrase: Structure | str, modality: Modality | None) -> list[str]:
    """Every template with every phrase of a structure, or with the given words."""
    phrases = phrase.phrases if isinstance(phrase, Structure) else (phrase,)
    return [template.format(p) for p in phrases for template in templates(modality)]


def background_phrases() -> list[str]:
    """Phrases for what lies around the structures, which a prompt is compared with."""
    return [
        "background",
        "image background",
        "air outside the body",
        "scanner table",
        "soft tissue without an organ",
        "unlabelled tissue",
        "tissue between the organs",
        "rest of the body",
    ]
