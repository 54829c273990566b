"""Whole files, damaged and made to harm: where bytes are numbers of a format, with other numbers in their place."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63), 10**30)
WORDS = ("", "F32", "BF16", "I64", "U16", "F8_E4M3", "BOOL", "C64", "../../outside", "/etc/passwd", "a\x00b", "\ud800")
VALUES = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.sampled_from(
        [None, True, 1.5, 1e999, [], {}, [2**40, 8], [0, 2**40], [2**40, 0], [2**62, 4], [-1], [[1]], {"a": 1}]
    ),
)
_DIGITS = re.compile(rb"\d+")


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """One to three of the ways, one after the other."""
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        ways = [_flipped, _cut, _grown, _digits, _lengths]
        ways += [_header] * 4 if _header_of(data) is not None else []
        ways += [_archive] * 4 if data[:2] == b"PK" else []
        ways += [_lines] * 4 if data[:1] == b"{" else []
        data = draw(draw(st.sampled_from(ways))(data))
    return data


@st.composite
def _flipped(draw: st.DrawFn, data: bytes) -> bytes:
    raw = bytearray(data)
    for _ in range(draw(st.integers(1, 4)) if raw else 0):
        near = draw(st.sampled_from([len(raw), min(len(raw), 256)]))  # formats say what is where at their beginning
        raw[draw(st.integers(0, near - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


@st.composite
def _cut(draw: st.DrawFn, data: bytes) -> bytes:
    return data[: draw(st.integers(0, len(data)))]


@st.composite
def _grown(draw: st.DrawFn, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    return (
        data[:at] + draw(st.sampled_from([b"\x00" * 64, b"[" * 20_000, b'{"a":' * 20_000, data, b"\xff"])) + data[at:]
    )


@st.composite
def _digits(draw: st.DrawFn, data: bytes) -> bytes:
    """A number that is written out, as another."""
    found = list(_DIGITS.finditer(data))
    if not found:
        return data
    match = draw(st.sampled_from(found[:64]))
    return data[: match.start()] + str(draw(st.sampled_from(NUMBERS))).encode() + data[match.end() :]


@st.composite
def _lengths(draw: st.DrawFn, data: bytes) -> bytes:
    """Four or eight bytes that may be a length, at the beginning, at the end, or anywhere."""
    number = draw(st.sampled_from(NUMBERS)) & (2**64 - 1)
    size = draw(st.sampled_from([4, 8]))
    at = draw(st.one_of(st.just(0), st.integers(0, max(0, len(data) - size)), st.just(max(0, len(data) - 8))))
    return data[:at] + (number & (256**size - 1)).to_bytes(size, "little") + data[at + size :]


def _header_of(data: bytes) -> dict[str, Any] | None:
    """That of a safetensors file, where it is one still."""
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= len(data) - 8:
        return None
    try:
        found = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found else None


@st.composite
def _header(draw: st.DrawFn, data: bytes) -> bytes:
    """Another shape, type, place or name of a tensor, or other words about it; numbers that are told stay consistent
    where the length of nothing is asked for."""
    header, body = _header_of(data) or {}, data[8 + int.from_bytes(data[:8], "little") :]
    name = draw(st.sampled_from(sorted(header)))
    about = header[name]
    how = draw(st.sampled_from(["value", "empty", "name", "gone", "about"]))
    if how == "about" and isinstance(header.get("__metadata__"), dict):
        said = header["__metadata__"]
        key = draw(st.sampled_from(sorted(said)))
        try:
            inner = json.loads(said[key])
            said[key] = json.dumps(draw(replaced(inner)))
        except (TypeError, ValueError):
            said[key] = draw(VALUES)
    elif how == "empty" and isinstance(about, dict) and "shape" in about:
        about["shape"] = draw(st.permutations([0, 2**40, draw(st.sampled_from([1, 8, 2**20]))]))[
            : draw(st.integers(2, 3))
        ]
        about["data_offsets"] = [0, 0]
    elif how == "name":
        header[draw(st.sampled_from([*WORDS, "attention_mask", "offsets", "hidden_scale"]))] = header.pop(name)
    elif how == "gone":
        del header[name]
    elif isinstance(about, dict) and about:
        about[draw(st.sampled_from(sorted(about)))] = draw(VALUES)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


@st.composite
def replaced(draw: st.DrawFn, value: Any) -> Any:
    """A part of what JSON says, however deep, as something else."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(replaced(value[key]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(replaced(value[at])), *value[at + 1 :]]
    return draw(VALUES)


@st.composite
def _lines(draw: st.DrawFn, data: bytes) -> bytes:
    """A line of JSON with something else in it, or without something."""
    lines = data.split(b"\n")
    at = draw(st.integers(0, len(lines) - 1))
    try:
        value = draw(replaced(json.loads(lines[at])))
    except (ValueError, RecursionError):
        return data
    lines[at] = json.dumps(value).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


@st.composite
def _archive(draw: st.DrawFn, data: bytes) -> bytes:
    """A zip archive with one member of another name, content or packing."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # not one any more
        return data
    if not members:
        return data
    which = draw(st.integers(0, len(members) - 1))
    name, content = members[which]
    members[which] = (
        draw(st.sampled_from([name, name, f"../{name}", "/outside", "attention_mask.npy"])),
        draw(draw(st.sampled_from([_flipped, _cut, _digits, _lengths]))(content)),
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()
