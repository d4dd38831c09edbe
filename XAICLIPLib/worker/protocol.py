r"""The messages between the worker process (`XAICLIPLib.worker`) and its client, such as 3D Slicer: version 1.

A message is a JSON object on a line of its own, in UTF-8: requests on the worker's stdin, replies on its stdout, where
nothing else is ever written. Files are named by path; volumes are written by one side and read by the other. Lengths
are in mm, times in seconds; a box is ``[R0, R1, A0, A1, S0, S1]``, mm in RAS, each pair from low to high.

Every request has an ``id``, a whole number that the client chooses, and a ``type``; every reply has the ``id`` of the
request that it answers (null where that had none) and a ``type``. Keys marked ? may be left out or null.

=========  ====================================================  =================================================
request    keys                                                  answered by
=========  ====================================================  =================================================
hello      protocol                                              hello, then devices
localize   volume, prompt, localizer?, threshold?, margin_mm?,   progress ..., then region
           device?, modality?
explain    volume, further_volumes?, prompt, output?, model?,    progress and estimate ..., then explanation
           localizer?,
           method?, parameters?, region?, target?, score?,
           effect?, baseline?, threshold?, margin_mm?, modality?,
           device?, precision?, batch_size?, seed?, trust?,
           check?, estimates?
report     folder, output, volume?, pdf?                         reported
dicom      folder, output, images, volume?                       reported
describe   model, device?, trust?                                described
download   name                                                  progress ..., then downloaded
remove     name                                                  removed
cancel     request                                               cancelling
shutdown                                                         bye, and the worker ends
=========  ====================================================  =================================================

``{"id": 2, "type": "explain", "volume": "scan.nrrd", "prompt": "liver", "region": {"box_ras_mm": [0, 90, ...]}}``

- ``region`` is ``"guided"``, ``"whole"``, ``"prediction"``, ``{"mask": PATH}`` or ``{"box_ras_mm": [...]}``;
  ``target`` is ``{"structure": NAME}``, ``{"mask": PATH}`` or ``{"box_ras_mm": [...]}``. What is left out is as in
  `XAICLIPLib.explain`; ``parameters`` are those of `XAICLIPLib.explainers.methods`.
- ``further_volumes`` follow ``volume`` in the network's order, where it takes several images at once.
- A ``prompt`` that names several structures ("liver and spleen"), or a pair whose sides the network draws apart
  ("kidneys"), is answered by one ``explanation`` that holds all of them, unless a ``target`` is given: the first, and
  the others in ``further``, each in a folder of its own inside ``output``. ``estimate`` is of the first alone. What was
  not explained is in ``missing``.
- ``output`` is the folder for the results, by default a new one inside the worker's private folder. That folder, named
  by the reply to hello, is also for what the client hands over; the worker removes it when it ends.
- ``hello`` is answered at once, with ``devices`` that may lack the GPUs; ``devices`` follows with all of them.
- ``download`` gets a model of the catalogue onto this machine, where it is not yet; nothing else downloads one, but
  for a hub id that a client gives as ``model`` or ``localizer``. Its ``progress`` counts bytes, ``total`` being 0 while
  it is not known. After a ``cancel``, the bytes that have arrived are kept if the next download can continue with them.
  A ``hello`` after a download lists which models are installed then.
- ``remove`` deletes what was downloaded of a model; what a library keeps in a cache of its own stays there.
- ``progress`` comes up to ten times a second: ``stage`` is ``localize``, ``segment``, ``explain``, ``download`` or,
  where ``check`` is true and the map is tested when it is done, ``check``. A ``warning`` in it is for the user at once.
- ``estimate``, if ``estimates`` is true, names a new NRRD file with the saliency so far; the file is complete before
  the message is sent. The client deletes it after reading; the worker deletes all but the two newest, so that a client
  with several unread ``estimate`` messages reads the file of the last.
- ``report`` writes the explanation in ``folder`` as a page for a reader, into the file ``output`` (.html or .pdf), with
  slices of the scan where ``volume`` names it; ``pdf`` writes the PDF beside the HTML.
- ``dicom`` writes the explanation in ``folder`` as DICOM objects into the folder ``output``, for the study of the scan,
  whose DICOM files are ``images``. A worker from before it answers with an error of kind ``protocol``.
- ``describe`` loads a network and tells what it draws and takes, for a client that shows it; the next ``explain`` need
  not load it again. A worker from before it answers with an error of kind ``protocol``.
- ``cancel`` is read while a request is computed. That request then ends with its partial ``explanation``, in which
  ``complete`` is false, or with an error of kind ``cancelled``. For a request that has already ended, the reply is an
  error of kind ``protocol``.
- One localize, explain, report, dicom, describe, remove or download is worked on at a time; another meanwhile gets an
  error of kind ``protocol``.
- ``error`` ends the request that it answers. ``kind`` is ``protocol`` (a mistake of the client, or busy), ``input``
  (the user can mend it), ``cancelled``, ``memory``, ``missing package`` or ``internal``; ``message`` is a sentence for
  the user, and ``ways``, where there are any, the ways out that are named in it: each with ``kind`` and ``subject``, as
  of `XAICLIPLib.errors.WayOut`, and ``words``, the part of the sentence that says it for the command line.

A line of more than 1 MiB, or one that is no such message, gets an error, and reading goes on with the next line. A
worker refuses keys that it does not know, so that no option is silently ignored; a client ignores them, so that a newer
worker may add some. Any other change needs a new version.

Nothing beyond the standard library is needed here: both sides use this file, and Slicer's Python may have no PyTorch.

>>> encode(Localize(id=1, volume="scan.nrrd", prompt="liver"))
b'{"type": "localize", "id": 1, "volume": "scan.nrrd", "prompt": "liver"}\n'
>>> parse_request(b'{"type": "cancel", "id": 2, "request": 1}')
Cancel(id=2, request=1)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar

from XAICLIPLib.system import json_values
from XAICLIPLib.system.json_values import Box as Box
from XAICLIPLib.system.json_values import Mask as Mask
from XAICLIPLib.system.json_values import NamedStructure as NamedStructure

PROTOCOL = 1
LONGEST_LINE = 1 << 20
"""Bytes of a request, without the end of the line."""

Stage = Literal["localize", "segment", "explain", "check", "download"]
REGIONS = ("guided", "whole", "prediction")
"""Words for a region."""
ErrorKind = Literal["protocol", "input", "cancelled", "memory", "missing package", "internal"]


class ProtocolError(ValueError):
    """A message that does not follow the protocol. The text says what is wrong; ``id`` is the message's, if any."""

    def __init__(self, message: str, id: int | None = None) -> None:
        super().__init__(message)
        self.id = id


def _field(check: json_values.Validator, default: Any = MISSING) -> Any:
    """A key of a message with the check of its value; with a default of None it may be left out."""
    return field(default=default, metadata={"check": check})


# --- messages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Message:
    """A request or a reply. Its values are checked when it is created.

    Raises
    ------
    ProtocolError
        A value is not what its key takes.
    """

    type: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for key in fields(self):
            value = getattr(self, key.name)
            if value is None and key.default is None:
                continue
            try:
                checked = key.metadata["check"](value)
            except ValueError as error:
                raise ProtocolError(f"{key.name} of {self.type} is {_short(value)}: give {error}.") from None
            object.__setattr__(self, key.name, checked)  # the only way to set it, as the dataclass is frozen


@dataclass(frozen=True, kw_only=True)
class Request(Message):
    """A message from the client to the worker."""

    id: int = _field(json_values.whole_number(-json_values.LARGEST))


@dataclass(frozen=True, kw_only=True)
class Hello(Request):
    """Ask for the worker's version, devices, models, methods and choices."""

    type = "hello"
    protocol: int = _field(json_values.whole_number(0))


@dataclass(frozen=True, kw_only=True)
class Localize(Request):
    """Ask where the structure is."""

    type = "localize"
    volume: str = _field(json_values.path)
    prompt: str = _field(json_values.text)
    localizer: str | None = _field(json_values.path, None)
    threshold: float | None = _field(json_values.number(0, 1), None)
    margin_mm: float | None = _field(json_values.number(0), None)
    device: str | None = _field(json_values.text, None)
    modality: str | None = _field(json_values.choice("CT", "MR"), None)


@dataclass(frozen=True, kw_only=True)
class Explain(Request):
    """Ask for an explanation: why the network drew the structure where it did."""

    type = "explain"
    volume: str = _field(json_values.path)
    further_volumes: tuple[str, ...] | None = _field(json_values.paths, None)
    prompt: str = _field(json_values.text)
    output: str | None = _field(json_values.path, None)
    model: str | None = _field(json_values.path, None)
    localizer: str | None = _field(json_values.path, None)
    method: str | None = _field(json_values.text, None)
    parameters: dict[str, Any] | None = _field(json_values.mapping, None)
    region: str | Mask | Box | None = _field(
        json_values.location(REGIONS, mask=json_values.mask, box_ras_mm=json_values.box), None
    )
    target: NamedStructure | Mask | Box | None = _field(
        json_values.location(
            (), structure=json_values.structure_name, mask=json_values.mask, box_ras_mm=json_values.box
        ),
        None,
    )
    score: str | None = _field(json_values.text, None)
    effect: str | None = _field(json_values.text, None)
    baseline: str | None = _field(json_values.text, None)
    threshold: float | None = _field(json_values.number(0, 1), None)
    margin_mm: float | None = _field(json_values.number(0), None)
    modality: str | None = _field(json_values.choice("CT", "MR"), None)
    device: str | None = _field(json_values.text, None)
    precision: str | None = _field(json_values.text, None)
    batch_size: int | None = _field(json_values.whole_number(1), None)
    seed: int | None = _field(json_values.whole_number(0), None)
    trust: bool | None = _field(json_values.flag, None)
    check: bool | None = _field(json_values.flag, None)
    estimates: bool | None = _field(json_values.flag, None)


@dataclass(frozen=True, kw_only=True)
class Report(Request):
    """Ask for the report of a saved explanation: a page for a reader."""

    type = "report"
    folder: str = _field(json_values.path)
    output: str = _field(json_values.path)
    volume: str | None = _field(json_values.path, None)
    pdf: bool | None = _field(json_values.flag, None)


@dataclass(frozen=True, kw_only=True)
class SaveDicom(Request):
    """Ask for a saved explanation as DICOM objects, in the study of the scan that ``images`` are."""

    type = "dicom"
    folder: str = _field(json_values.path)
    output: str = _field(json_values.path)
    images: tuple[str, ...] = _field(json_values.paths)
    volume: str | None = _field(json_values.path, None)


@dataclass(frozen=True, kw_only=True)
class Describe(Request):
    """Ask for the structures that a network draws, and the images that it takes."""

    type = "describe"
    model: str = _field(json_values.path)
    device: str | None = _field(json_values.text, None)
    trust: bool | None = _field(json_values.flag, None)


@dataclass(frozen=True, kw_only=True)
class Download(Request):
    """Download a model of the catalogue onto this machine."""

    type = "download"
    name: str = _field(json_values.text)


@dataclass(frozen=True, kw_only=True)
class Remove(Request):
    """Delete what was downloaded of a model."""

    type = "remove"
    name: str = _field(json_values.text)


@dataclass(frozen=True, kw_only=True)
class Cancel(Request):
    """End the running request of this id with the result so far."""

    type = "cancel"
    request: int = _field(json_values.whole_number(-json_values.LARGEST))


@dataclass(frozen=True, kw_only=True)
class Shutdown(Request):
    """End the worker."""

    type = "shutdown"


@dataclass(frozen=True, kw_only=True)
class Reply(Message):
    """A message from the worker to the client; ``id`` is None if the request had none."""

    id: int | None = _field(json_values.whole_number(-json_values.LARGEST), None)


@dataclass(frozen=True, kw_only=True)
class Greeting(Reply):
    """Answers `Hello`.

    ``versions`` by package; ``segmenters`` and ``localizers``: name, format, title, modality, structures, licence,
    citation, source, size_mb (null where it is not known), installed, default, and inputs, the names of the images
    that a segmenter takes at once, where they are known; ``methods``: `XAICLIPLib.explainers.methods.describe`;
    ``structures``: names of the anatomy vocabulary; ``regions``: words for a region.
    """

    type = "hello"
    protocol: int = _field(json_values.whole_number(0))
    versions: dict[str, Any] = _field(json_values.mapping)
    devices: tuple[str, ...] = _field(json_values.texts)
    device_names: dict[str, Any] = _field(json_values.mapping)
    folder: str = _field(json_values.path)
    segmenters: tuple[dict[str, Any], ...] = _field(json_values.objects)
    localizers: tuple[dict[str, Any], ...] = _field(json_values.objects)
    methods: dict[str, Any] = _field(json_values.mapping)
    scores: tuple[str, ...] = _field(json_values.texts)
    baselines: tuple[str, ...] = _field(json_values.texts)
    structures: tuple[str, ...] = _field(json_values.texts)
    regions: tuple[str, ...] | None = _field(json_values.texts, None)


@dataclass(frozen=True, kw_only=True)
class Devices(Reply):
    """All devices, and the name of each for the user."""

    type = "devices"
    devices: tuple[str, ...] = _field(json_values.texts)
    device_names: dict[str, Any] = _field(json_values.mapping)


@dataclass(frozen=True, kw_only=True)
class Progress(Reply):
    """How far the stage is, in bytes for ``download``; ``seconds_left`` is of this stage, None where not known.

    ``warning`` is a sentence for the user that should not wait for the result, which holds it too.
    """

    type = "progress"
    stage: Stage = _field(json_values.choice("localize", "segment", "explain", "check", "download"))
    done: int = _field(json_values.whole_number(0))
    total: int = _field(json_values.whole_number(0))
    seconds_left: float | None = _field(json_values.number(0), None)
    warning: str | None = _field(json_values.text, None)


@dataclass(frozen=True, kw_only=True)
class Estimate(Reply):
    """The map so far: ``files["saliency"]``, after ``done`` of ``total`` perturbations."""

    type = "estimate"
    files: dict[str, str] = _field(json_values.files)
    done: int = _field(json_values.whole_number(0))
    total: int = _field(json_values.whole_number(0))


@dataclass(frozen=True, kw_only=True)
class FoundRegion(Reply):
    """Answers `Localize`: ``files["region"]``; ``region`` holds source, volume_ml and share_of_body."""

    type = "region"
    files: dict[str, str] = _field(json_values.files)
    region: dict[str, Any] = _field(json_values.mapping)
    warnings: tuple[str, ...] = _field(json_values.texts)


@dataclass(frozen=True, kw_only=True)
class Explained(Reply):
    """Answers `Explain`: the files written, and the contents of explanation.json.

    Of several structures these are the first one's; ``further`` holds complete, files and record of each of the others,
    and ``missing`` the reason for each that was not explained, by its name.
    """

    type = "explanation"
    complete: bool = _field(json_values.flag)
    files: dict[str, str] = _field(json_values.files)
    record: dict[str, Any] = _field(json_values.mapping)
    further: tuple[dict[str, Any], ...] | None = _field(json_values.objects, None)
    missing: dict[str, Any] | None = _field(json_values.mapping, None)


@dataclass(frozen=True, kw_only=True)
class Reported(Reply):
    """Answers `Report` and `SaveDicom` with what was written: ``files["html"]``, ``files["parametric_map"]``, ..."""

    type = "reported"
    files: dict[str, str] = _field(json_values.files)


@dataclass(frozen=True, kw_only=True)
class Described(Reply):
    """Answers `Describe`: the names of the classes that it draws, without background, and of the images it takes."""

    type = "described"
    structures: tuple[str, ...] = _field(json_values.texts)
    inputs: tuple[str, ...] = _field(json_values.texts)


@dataclass(frozen=True, kw_only=True)
class Downloaded(Reply):
    """Answers `Download`: the folder or file of the model; None if a library keeps it in its own cache."""

    type = "downloaded"
    name: str = _field(json_values.text)
    path: str | None = _field(json_values.path, None)


@dataclass(frozen=True, kw_only=True)
class Removed(Reply):
    """Answers `Remove`; ``installed`` is true if the model is still on this machine, in the cache of a library."""

    type = "removed"
    name: str = _field(json_values.text)
    installed: bool = _field(json_values.flag)


@dataclass(frozen=True, kw_only=True)
class Cancelling(Reply):
    """Answers `Cancel`: the request will end soon."""

    type = "cancelling"


@dataclass(frozen=True, kw_only=True)
class Bye(Reply):
    """Answers `Shutdown`: the last reply."""

    type = "bye"


@dataclass(frozen=True, kw_only=True)
class Error(Reply):
    """The request has failed; a way out in ``message`` is said for the command line, and told in ``ways``."""

    type = "error"
    kind: ErrorKind = _field(
        json_values.choice("protocol", "input", "cancelled", "memory", "missing package", "internal")
    )
    message: str = _field(json_values.text)
    ways: tuple[dict[str, Any], ...] | None = _field(json_values.objects, None)


REQUESTS: Mapping[str, type[Request]] = {
    kind.type: kind
    for kind in (Hello, Localize, Explain, Report, SaveDicom, Describe, Download, Remove, Cancel, Shutdown)
}
REPLIES: Mapping[str, type[Reply]] = {
    kind.type: kind
    for kind in (
        *(Greeting, Devices, Progress, Estimate, FoundRegion, Explained),
        *(Reported, Described, Downloaded, Removed, Cancelling, Bye, Error),
    )
}


# --- to and from lines --------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The line of a message, with its line end. Values of a request that are None are left out."""
    values = {key.name: _plain(getattr(message, key.name)) for key in fields(message)}
    if isinstance(message, Request):
        values = {name: value for name, value in values.items() if value is not None}
    return json.dumps({"type": message.type, **values}, allow_nan=False).encode("ascii") + b"\n"


def parse_request(line: bytes) -> Request:
    """The request on a line.

    Raises
    ------
    ProtocolError
        The line is no request: too long, no JSON object, an unknown type, or a missing, unknown or wrong key.
    """
    if len(line.rstrip(b"\r\n")) > LONGEST_LINE:
        raise ProtocolError(f"The request is longer than {LONGEST_LINE} bytes: hand volumes over as files.")
    return _parse(line, REQUESTS, "request", strict=True)


def parse_reply(line: bytes) -> Reply:
    """The reply on a line; unknown keys are ignored.

    Raises
    ------
    ProtocolError
        The line is no reply: no JSON object, an unknown type, or a missing or wrong key.
    """
    return _parse(line, REPLIES, "reply", strict=False)


M = TypeVar("M", bound=Message)


def _parse(line: bytes, known: Mapping[str, type[M]], what: str, strict: bool) -> M:
    try:
        content = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested too deeply
        content = None
    if not isinstance(content, dict):
        raise ProtocolError(f"The {what} is no JSON object on a line of its own, in UTF-8.")
    id = content.get("id")
    if isinstance(id, bool) or not isinstance(id, int) or abs(id) > json_values.LARGEST:
        id = None
    try:
        return _message_of(content, known, what, strict)
    except ProtocolError as error:
        raise ProtocolError(str(error), id) from None


def _message_of(content: dict[str, Any], known: Mapping[str, type[M]], what: str, strict: bool) -> M:
    name = content.pop("type", None)
    if not isinstance(name, str) or name not in known:
        raise ProtocolError(f"The {what} has the type {_short(name)}: the types are {', '.join(known)}.")
    keys = {key.name: key for key in fields(known[name])}
    unknown = [key for key in content if key not in keys]
    if unknown and strict:
        raise ProtocolError(f"{name} has no key {_short(unknown[0])}: its keys are {', '.join(keys)}.")
    missing = [key.name for key in keys.values() if key.default is MISSING and content.get(key.name) is None]
    if missing:
        raise ProtocolError(f"{name} lacks {', '.join(missing)}.")
    return known[name](**{key: value for key, value in content.items() if key in keys})


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, (Mask, Box, NamedStructure)) else value


def _short(value: Any) -> str:
    """A value in a message, no longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
