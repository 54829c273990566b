"""Shards of a run, each with a note beside its output that says of what it is; joined when all of them are whole.

Shard i of n has the texts i − 1, i − 1 + n, i − 1 + 2n …: known beforehand, and of every part of the file its share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..types import InputError
from .atomic import write_whole
from .json_text import parse

FORMAT = "invert_fast-shard-1"
SUFFIX = ".shard.json"
_CERTIFIED = b', "certified": true, '  # in strings quotes are escaped, so this is the line's own
_MOST_SHARDS, _MOST = 1 << 20, 1 << 60  # of a run; of texts and bytes
_LARGEST = 1 << 20  # bytes of a note: more is none of ours


@dataclass(frozen=True)
class Whole:
    """A shard's output when all its texts are in it. certified: how many of its `lines` are."""

    lines: int
    certified: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """part of parts, counted from 1, of `texts` texts in all; settings: of what and how texts are recovered, equal in
    all shards of a run; whole: None until all is there."""

    part: int
    parts: int
    texts: int
    settings: dict[str, Any]
    whole: Whole | None = None

    @property
    def name(self) -> str:
        return f"{self.part}/{self.parts}"

    def lines(self) -> int:
        """How many texts are in it."""
        return len(range(self.part - 1, self.texts, self.parts))


def note_of(output: Path) -> Path:
    """Where the note of a shard's output is."""
    return output.with_name(output.name + SUFFIX)


def check_begun(output: Path, shard: Shard) -> None:
    """InputError where there is an output that is not of this shard."""
    if not output.exists() or not output.stat().st_size:
        return
    before = read(output)
    differs = _difference(before, shard) or (f"shard {before.name}", f"shard {shard.name}")
    if differs[0] != differs[1]:
        raise InputError(
            f"{output} was begun with {differs[0]}, this run has {differs[1]}, nothing was resumed: give the options "
            "that it was begun with, or another --output"
        )


def begin(output: Path, shard: Shard) -> None:
    """Say what a shard will be of, before its first line."""
    _write(note_of(output), replace(shard, whole=None))


def finish(output: Path, shard: Shard) -> None:
    """Say that all texts of a shard are in its output, in their order."""
    digest, size, lines, certified = hashlib.sha256(), 0, 0, 0
    with output.open("rb") as file:
        for line in file:
            digest.update(line)
            size, lines, certified = size + len(line), lines + 1, certified + (_CERTIFIED in line)
    _write(note_of(output), replace(shard, whole=Whole(lines, certified, size, digest.hexdigest())))


def _write(note: Path, shard: Shard) -> None:
    write_whole(note, json.dumps({"format": FORMAT, **asdict(shard)}, indent=1, sort_keys=True).encode() + b"\n")


def read(output: Path) -> Shard:
    """What the note beside an output says; InputError where there is none, or one that makes no sense."""
    note = note_of(output)
    if not output.is_file() or not note.is_file():
        missing = note if output.is_file() else output
        raise InputError(
            f"{missing} does not exist, expected the output of a shard and its note beside it: make both with "
            "`invert-fast invert --shard i/n`, and move them together"
        )
    try:
        if note.stat().st_size > _LARGEST:
            raise ValueError(f"{note.stat().st_size} bytes")
        said = parse(note.read_bytes())
        if said.pop("format") != FORMAT:
            raise ValueError("another format")
        whole = said.pop("whole")
        shard = Shard(**said, whole=None if whole is None else Whole(**whole))
        numbers = [
            shard.part,
            shard.parts,
            shard.texts,
            *([] if shard.whole is None else [*asdict(shard.whole).values()][:3]),
        ]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"numbers {numbers}")
        if max(numbers) > _MOST or shard.parts > _MOST_SHARDS:
            raise ValueError(f"numbers {numbers}")
        if not (1 <= shard.part <= shard.parts and isinstance(shard.settings, dict)):
            raise ValueError(f"shard {shard.name}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{note} is damaged or no note of a shard ({error}), expected what `invert --shard` writes: run the shard "
            "again"
        ) from error
    return shard


def outputs_in(folder: Path) -> list[Path]:
    """The outputs of shards that lie in a folder, by their notes; InputError where there is none."""
    notes = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX) and not path.name.startswith("."))
    if not notes:
        raise InputError(f"{folder} has no output of a shard in it, expected files with a note ({SUFFIX}) beside them")
    return [note.with_name(note.name.removesuffix(SUFFIX)) for note in notes]


def check(outputs: Sequence[Path]) -> list[tuple[Path, Shard]]:
    """The shards of one run, all there, each once and whole, in their order; InputError that names what is not so."""
    if not outputs:
        raise InputError(
            "no shards were given, expected the outputs of `invert-fast invert --shard i/n`, all n of them"
        )
    found = [(output, read(output)) for output in outputs]
    first, like = found[0]
    by_part: dict[int, tuple[Path, Shard]] = {}
    for output, shard in found:
        if differs := _difference(like, shard):
            raise InputError(
                f"{first} was made with {differs[0]}, {output} with {differs[1]}, expected shards of one run: give "
                "those that belong together"
            )
        if shard.part in by_part:
            raise InputError(
                f"shard {shard.name} is there twice, {by_part[shard.part][0]} and {output}, expected each once: leave "
                "one out"
            )
        by_part[shard.part] = output, shard
    if missing := [part for part in range(1, like.parts + 1) if part not in by_part]:
        named = ", ".join(f"{part}/{like.parts}" for part in missing[:12]) + (" …" if len(missing) > 12 else "")
        raise InputError(
            f"{len(missing)} of {like.parts} shards are missing ({named}), expected all: run `invert-fast invert` with "
            "--shard for each, or give its output as well"
        )
    for output, shard in by_part.values():
        if shard.whole is None or shard.whole.lines != shard.lines():
            raise InputError(
                f"{output} (shard {shard.name}) is not finished, expected all its {shard.lines()} texts: run its "
                "command again with --resume"
            )
        if (size := output.stat().st_size) != shard.whole.bytes:
            raise InputError(
                f"{output} (shard {shard.name}) has {size:,} bytes, expected {shard.whole.bytes:,} by its note: it was "
                "cut short or edited, copy it again or run the shard again"
            )
    return [by_part[part] for part in sorted(by_part)]


def _difference(one: Shard, other: Shard) -> tuple[str, str] | None:
    """In words, the first thing in which two shards are not of one run."""
    pairs = [("shards", one.parts, other.parts), ("texts", one.texts, other.texts)]
    pairs += [
        (name, one.settings.get(name), other.settings.get(name))
        for name in dict.fromkeys((*one.settings, *other.settings))
    ]
    return next(((f"{name} {_said(a)}", f"{name} {_said(b)}") for name, a, b in pairs if a != b), None)


def _said(value: Any) -> str:
    return "not said" if value is None else str(value)
