"""The messages between worker and client: what is let in, what is refused, and what a line looks like."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from XAICLIPLib.worker import protocol
from XAICLIPLib.worker.protocol import (
    LONGEST_LINE,
    REPLIES,
    REQUESTS,
    Box,
    Download,
    Downloaded,
    Error,
    Explain,
    Explained,
    Greeting,
    Localize,
    Mask,
    NamedStructure,
    Progress,
    ProtocolError,
    encode,
    parse_reply,
    parse_request,
)

FULL: dict[str, Any] = {
    "further_volumes": ["t1.nrrd", "t2.nrrd"],
    "id": 7,
    "type": "explain",
    "volume": "/tmp/scan.nrrd",
    "prompt": "linke Niere · 左腎",
    "output": "/tmp/out",
    "model": "abdomen-ct",
    "localizer": "anatomy-clip",
    "method": "rise",
    "parameters": {"samples": 500, "cell_mm": None},
    "region": {"box_ras_mm": [-90, 0.5, 1, 2, -3, 3]},
    "target": {"structure": "liver"},
    "score": "soft dice",
    "effect": "remote",
    "baseline": "air",
    "threshold": 0.5,
    "margin_mm": 8,
    "modality": "CT",
    "device": "cuda:0",
    "precision": "full",
    "batch_size": 4,
    "seed": 1,
    "trust": False,
    "check": True,
    "estimates": True,
}
LOCALIZE: dict[str, Any] = {"id": 1, "type": "localize", "volume": "v", "prompt": "liver"}


def line(**keys: Any) -> bytes:
    return json.dumps(keys).encode() + b"\n"


def test_a_request_with_every_key_arrives_as_it_was_sent() -> None:
    request = parse_request(line(**FULL))
    assert isinstance(request, Explain)
    assert {key.name for key in fields(Explain)} | {"type"} == set(FULL), "a key is not tried here"
    assert request.region == Box((-90.0, 0.5, 1.0, 2.0, -3.0, 3.0))
    assert request.target == NamedStructure("liver")
    assert json.loads(encode(request)) == FULL
    assert parse_request(encode(request)) == request


def test_what_is_left_out_or_null_is_none_and_is_not_sent() -> None:
    request = parse_request(line(**LOCALIZE, threshold=None))
    assert request == Localize(id=1, volume="v", prompt="liver")
    assert json.loads(encode(request)) == LOCALIZE


@pytest.mark.parametrize(
    "value", ["guided", "whole", "prediction", {"mask": "m.nrrd"}, {"box_ras_mm": [0, 1, 0, 1, 0, 1]}]
)
def test_a_region_is_a_word_a_mask_or_a_box(value: Any) -> None:
    request = parse_request(line(**FULL | {"region": value}))
    assert json.loads(encode(request))["region"] == value


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"volume": None}, "lacks volume"),
        ({"volume": 5}, "volume of explain is 5: give a path"),
        ({"volume": " "}, "give a path"),
        ({"volume": "a\0b"}, "give a path"),
        ({"volume": "\ud800"}, "a path that this system can have"),
        ({"prompt": ""}, "give some text"),
        ({"prompt": ["liver"]}, "give some text"),
        ({"prompt": "\udfff"}, "valid Unicode"),
        ({"windw": 3}, "no key 'windw'"),
        ({"parameters": [1]}, "give an object"),
        ({"region": "everywhere"}, "guided, whole, prediction, {mask: ...}, {box_ras_mm: ...}"),
        ({"region": {"mask": "m", "box_ras_mm": [0, 1, 0, 1, 0, 1]}}, "give one of"),
        ({"region": {"structure": "liver"}}, "give one of"),
        ({"region": {"box_ras_mm": [0, 1, 0, 1, 0]}}, "six numbers"),
        ({"region": {"box_ras_mm": [0, 1, 0, 1, 2, 2]}}, "low ends"),
        ({"region": {"box_ras_mm": [0, 1, 0, 1, 0, "1"]}}, "give a number"),
        ({"target": "liver"}, "give one of {structure: ...}"),
        ({"target": {"structure": 3}}, "give some text"),
        ({"threshold": 1.01}, "a number from 0 to 1"),
        ({"threshold": True}, "a number from 0 to 1"),
        ({"threshold": 10**400}, "a number from 0 to 1"),
        ({"margin_mm": -1}, "a number from 0"),
        ({"modality": "PET"}, "one of CT, MR"),
        ({"batch_size": 0}, "a whole number from 1"),
        ({"batch_size": 1.5}, "a whole number from 1"),
        ({"seed": -1}, "a whole number from 0"),
        ({"trust": 1}, "true or false"),
        ({"estimates": "yes"}, "true or false"),
        (
            {"type": "explode"},
            "'explode': the types are hello, localize, explain, report, dicom, describe, download, remove, cancel, "
            "shutdown",
        ),
        ({"type": ["explain"]}, "the types are"),
        ({"type": "progress"}, "the types are"),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_what_is_wrong_and_with_its_id(changed: Any, said: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_request(line(**FULL | changed))
    assert said in str(caught.value)
    assert caught.value.id == 7
    assert str(caught.value).endswith(".")


def test_a_download_names_a_model_and_its_end_where_it_lies() -> None:
    assert parse_request(b'{"type": "download", "id": 3, "name": "brats-mri"}') == Download(id=3, name="brats-mri")
    with pytest.raises(ProtocolError, match="name of download is ' ': give some text"):
        Download(id=3, name=" ")
    text = encode(Downloaded(id=3, name="clip-vit-b-16"))
    assert text == b'{"type": "downloaded", "id": 3, "name": "clip-vit-b-16", "path": null}\n'
    assert parse_reply(text) == Downloaded(id=3, name="clip-vit-b-16")
    huge = Progress(id=3, stage="download", done=30_000_000_000, total=0)
    assert parse_reply(encode(huge)) == huge


@pytest.mark.parametrize("id", [None, "1", 1.0, True, 2**53, [1]])
def test_an_id_is_a_whole_number_that_every_reader_of_json_keeps(id: Any) -> None:
    with pytest.raises(ProtocolError, match="id") as caught:
        parse_request(line(**LOCALIZE | {"id": id}))
    assert caught.value.id is None


@pytest.mark.parametrize(
    "text",
    [
        b"hello",
        b"",
        b"[1, 2]",
        b'"explain"',
        b"null",
        b'{"id": 1',
        b'{"id": 1, "type": "shutdown"} {}',
        b'{"id": 1, "type": "localize", "volume": "v", "prompt": "p", "threshold": NaN}',
        b'{"id": 1, "type": "localize", "volume": "v", "prompt": "p", "margin_mm": -Infinity}',
        b"[" * 200_000,
        b'{"id": ' + b"9" * 5000 + b"}",
        '{"id": 1, "type": "shutdown"}'.encode("utf-16"),
        b'{"id": 1, "type": "localize", "volume": "v", "prompt": "\xff"}',
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_json_object_in_utf8_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="no JSON object"):
        parse_request(text)


def test_a_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(ProtocolError, match="margin_mm"):
        parse_request(b'{"id": 1, "type": "localize", "volume": "v", "prompt": "p", "margin_mm": 1e999}')


def test_a_line_may_have_a_mebibyte_and_no_more() -> None:
    short = len(encode(Localize(id=1, volume="v", prompt="p"))) - 2  # without the prompt and the end of the line
    assert parse_request(encode(Localize(id=1, volume="v", prompt="p" * (LONGEST_LINE - short))))
    with pytest.raises(ProtocolError, match="longer than"):
        parse_request(encode(Localize(id=1, volume="v", prompt="p" * (LONGEST_LINE - short + 1))))


# Replies


def test_a_reply_is_a_line_of_ascii_that_says_null_for_what_is_not_known() -> None:
    text = encode(Progress(id=3, stage="explain", done=0, total=9))
    values = b'"stage": "explain", "done": 0, "total": 9, "seconds_left": null, "warning": null'
    assert text == b'{"type": "progress", "id": 3, ' + values + b"}\n"
    assert parse_reply(text) == Progress(id=3, stage="explain", done=0, total=9)
    umlaut = encode(Error(kind="input", message="Kein Ödem\nhier"))
    assert umlaut.isascii()
    assert umlaut.count(b"\n") == 1
    assert parse_reply(umlaut) == Error(id=None, kind="input", message="Kein Ödem\nhier")


def test_a_client_overlooks_what_a_newer_worker_adds() -> None:
    assert parse_reply(b'{"type": "bye", "id": 4, "mood": "sad"}') == protocol.Bye(id=4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"type": "goodbye", "id": 4}', "types are"),
        (b'{"type": "error", "id": 4, "kind": "input"}', "lacks message"),
        (b'{"type": "error", "id": 4, "kind": "bad", "message": "m"}', "one of protocol"),
        (b'{"type": "explanation", "id": 4, "complete": 1, "files": {}, "record": {}}', "true or false"),
        (b'{"type": "estimate", "id": 4, "files": {"saliency": 3}, "done": 1, "total": 2}', "give a path"),
        (b'{"type": "downloaded", "id": 4, "path": "/m"}', "lacks name"),
        (b'{"type": "progress", "id": 4, "stage": "upload", "done": 1, "total": 2}', "explain, check, download"),
        (b'{"type": "region", "id": 4, "files": {}, "region": {}, "warnings": "none"}', "list of texts"),
        (b"Segmentation fault", "no JSON object"),
    ],
)
def test_a_wrong_reply_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        parse_reply(text)


def test_to_make_a_message_checks_it_on_either_side() -> None:
    with pytest.raises(ProtocolError, match="prompt"):
        Localize(id=1, volume="v", prompt=" ")
    with pytest.raises(ProtocolError, match="seconds_left"):
        Progress(id=1, stage="explain", done=0, total=1, seconds_left=math.nan)
    with pytest.raises(ProtocolError, match="region"):
        Explain(id=1, volume="v", prompt="p", region="m.nrrd")
    assert Explain(id=1, volume="v", prompt="p", region=Mask("m.nrrd")).region == Mask("m.nrrd")


def test_what_json_cannot_hold_is_no_reply() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(Explained(id=1, complete=True, files={}, record={"x": math.inf}))


def test_the_reference_names_every_message_and_key() -> None:
    text = protocol.__doc__ or ""
    for kind in (*REQUESTS.values(), *REPLIES.values()):
        assert kind.type in text
    for kind in (Localize, Explain):
        assert [key.name for key in fields(kind) if f"{key.name}," not in text and f"{key.name}?" not in text] == ["id"]
    # The panel fills its lists from these.
    assert {"devices", "folder", "segmenters", "structures"} <= {key.name for key in fields(Greeting)}


def test_the_protocol_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import XAICLIPLib.worker.protocol; print(*(set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    foreign = {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"XAICLIPLib"}
    assert foreign == set()
