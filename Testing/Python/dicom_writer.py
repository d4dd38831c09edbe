"""DICOM files written byte by byte, without GDCM, which reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

CT = "1.2.840.10008.5.1.4.1.1.2"
SECRET = "Doe^Jane"
"""Of the patient, which no message may hold."""

ROW, COLUMN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def element(group: int, number: int, vr: str, value: bytes | str) -> bytes:
    """One data element, explicit VR little endian (DICOM PS3.5, 7.1.2)."""
    data = value.encode() if isinstance(value, str) else value
    if len(data) % 2:
        data += b"\0" if vr in ("UI", "OB") else b" "
    tag = struct.pack("<HH", group, number) + vr.encode()
    if vr in ("OB", "OW", "SQ"):
        return tag + struct.pack("<HI", 0, len(data)) + data
    return tag + struct.pack("<H", len(data)) + data


def numbers(*values: float) -> str:
    return "\\".join(f"{v:.10g}" for v in values)


def write(
    path: Path,
    pixels: np.ndarray | None = None,
    position: tuple[float, ...] | None = (0, 0, 0),
    *,
    kind: str = CT,
    modality: str = "CT",
    series: str = "1.2.3",
    number: int = 1,
    rows: tuple[float, ...] = (*ROW, *COLUMN),
    spacing: tuple[float, float] | str | None = (0.8, 0.7),
    slope: float = 1,
    intercept: float = -1024,
    preamble: bool = True,
    photometric: str = "MONOCHROME2",
    detector: bool = False,
) -> None:
    """Write one DICOM object; `spacing` is between rows, then between columns, as in DICOM."""
    uid = "1.2.3.4." + str(abs(hash(path.name)) % 10**9)
    meta = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", kind) + element(2, 3, "UI", uid)
    meta += element(2, 0x10, "UI", "1.2.840.10008.1.2.1") + element(2, 0x12, "UI", "1.2.3.9")
    meta = element(2, 0, "UL", struct.pack("<I", len(meta))) + meta
    body = element(8, 0x16, "UI", kind) + element(8, 0x18, "UI", uid)
    body += element(8, 0x60, "CS", modality)
    body += element(0x10, 0x10, "PN", SECRET) + element(0x10, 0x20, "LO", SECRET)
    if detector:
        body += element(0x18, 0x1164, "DS", "0.8\\0.7")
    body += element(0x20, 0xD, "UI", "1.2") + element(0x20, 0xE, "UI", series)
    body += element(0x20, 0x11, "IS", str(number))
    if position is not None:
        body += element(0x20, 0x32, "DS", numbers(*position))
        body += element(0x20, 0x37, "DS", numbers(*rows))
    if pixels is not None:
        colour = pixels.dtype == np.uint8
        frames = len(pixels) if pixels.ndim == 3 and not colour else 0
        height, width = pixels.shape[-2:] if not colour else pixels.shape[:2]
        bits = 8 * pixels.dtype.itemsize
        body += element(0x28, 2, "US", struct.pack("<H", 3 if colour else 1))
        body += element(0x28, 4, "CS", "RGB" if colour else photometric)
        if colour:
            body += element(0x28, 6, "US", struct.pack("<H", 0))
        if frames:
            body += element(0x28, 8, "IS", str(frames))
        body += element(0x28, 0x10, "US", struct.pack("<H", height))
        body += element(0x28, 0x11, "US", struct.pack("<H", width))
        if spacing is not None:
            body += element(0x28, 0x30, "DS", spacing if isinstance(spacing, str) else numbers(*spacing))
        for item, value in ((0x100, bits), (0x101, bits), (0x102, bits - 1), (0x103, pixels.dtype.kind == "i")):
            body += element(0x28, item, "US", struct.pack("<H", value))
        body += element(0x28, 0x1052, "DS", numbers(intercept))
        body += element(0x28, 0x1053, "DS", numbers(slope))
        body += element(0x7FE0, 0x10, "OW", pixels.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((bytes(128) + b"DICM" if preamble else b"") + meta + body)
