"""The module reads names and codes as the library's vocabulary does."""

from __future__ import annotations

from pathlib import Path

from XAICLIPLib import anatomy


def test_names_and_codes_are_those_of_the_vocabulary(module_path: Path) -> None:
    from XAICLIPModule.scene import terminology

    assert terminology.structures() == list(anatomy.vocabulary())
    for name, structure in anatomy.vocabulary().items():
        term = terminology.terms()[name]
        codes = [structure.category, structure.snomed, structure.modifier, structure.region]
        pairs = [(code.value, code.meaning) if code else None for code in codes]
        assert [term.category, term.type, term.modifier, term.region] == pairs, name


def test_entry_is_written_as_slicer_reads_it(module_path: Path) -> None:
    import slicer

    from XAICLIPModule.scene import terminology

    logic = slicer.vtkSlicerTerminologiesModuleLogic
    for name, kind, modifier in (("liver", "Liver", ""), ("left kidney", "Kidney", "Left")):
        entry = slicer.vtkSlicerTerminologyEntry()
        assert logic.DeserializeTerminologyEntry(terminology.entry(name), entry)
        assert entry.GetTypeObject().GetCodeMeaning() == kind
        assert (entry.GetTypeModifierObject().GetCodeMeaning() or "") == modifier
        assert entry.GetCategoryObject().GetCodeValue() == "123037004"


def test_a_side_belongs_to_the_region_where_there_is_one(module_path: Path) -> None:
    from XAICLIPModule.scene import terminology

    category, kind, modifier, _context, region, region_modifier = terminology.entry("left kidney cyst").split("~")[1:]
    assert (kind, modifier) == ("SCT^367643001^Cyst", "^^")
    assert (region, region_modifier) == ("SCT^64033007^Kidney", "SCT^7771000^Left")
    assert category.startswith("SCT^49755003^")


def test_what_has_no_code_has_no_entry(module_path: Path) -> None:
    from XAICLIPModule.scene import terminology

    assert terminology.entry("pancreas body") == ""
    assert terminology.entry("no such thing") == ""
