"""The folder of an audit: what it is of, its texts, a line a text and cell, and which cells are done.

A cell is done when its line is in cells.jsonl, which says where its lines end in results.jsonl; whatever a kill left
behind that is cut off again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..storage.atomic import sweep, write_whole
from ..storage.json_text import parse
from ..storage.lock import locked
from ..types import InputError
from .settings import Cell

FORMAT = "invert_fast-audit-1"
ABOUT, TEXTS, TOKENS, RESULTS, CELLS = "audit.json", "texts.jsonl", "tokens.json", "results.jsonl", "cells.jsonl"
SUMMARY, PAGE = "summary.json", "index.html"
SAME = ("format", "settings", "cells", "texts_in_all", "input", "model", "device", "dtype", "shard")


class Folder:
    """Where an audit is written. Enter it as `opened`."""

    def __init__(self, path: Path):
        self.path = path
        self.done: set[Cell] = set()

    def begin(
        self, about: dict[str, Any], texts: Iterable[Any], tokens: Mapping[str, Any], resume: bool
    ) -> dict[str, Any]:
        """Start, or go on; returns what the audit is of, as it was begun. InputError for a folder that has something
        else in it, and for one that was begun, unless `resume`."""
        there = self.path / ABOUT
        if not there.exists():
            if rest := sorted(p.name for p in self.path.iterdir() if not p.name.startswith(".")):
                raise InputError(
                    f"{self.path} has {rest[0]} in it and is no audit, expected a new folder: give another --output"
                )
            write_lines(self.path / TEXTS, map(asdict, texts))
            write_whole(self.path / TOKENS, _json(tokens))
            write_whole(there, _json(about))
            return about
        if not resume:
            raise InputError(
                f"{self.path} has an audit in it, expected a new folder: give another --output, or --resume to go on"
            )
        before = read_json(there)
        if differs := [name for name in SAME if before.get(name) != about.get(name)]:
            raise InputError(
                f"{self.path} was begun with other {differs[0]} ({_short(before.get(differs[0]))}, now "
                f"{_short(about.get(differs[0]))}), nothing was resumed: give that, or another --output"
            )
        self._take_up()
        return before

    def _take_up(self) -> None:
        """Find the cells that are done, and cut off what a kill left behind the last of them."""
        end, results = 0, self.path / RESULTS
        for row in whole_lines(self.path / CELLS):
            self.done.add(_cell(row))
            end = int(row["bytes"])
        size = results.stat().st_size if results.exists() else 0
        if size < end:
            raise InputError(
                f"{results} has {size:,} bytes, expected {end:,} at least: it was cut short or edited, audit again"
            )
        if size > end:
            os.truncate(results, end)

    def add(self, cell: Cell, rows: Iterable[Mapping[str, Any]]) -> None:
        """The lines of a cell, and then, when they are on disk, that it is done."""
        with (self.path / RESULTS).open("ab") as file:
            file.writelines(_json(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
            end = file.tell()
        with (self.path / CELLS).open("ab") as file:
            file.write(_json({**vars(cell), "bytes": end}))
            file.flush()
            os.fsync(file.fileno())
        self.done.add(cell)


@contextmanager
def opened(path: Path) -> Iterator[Folder]:
    """Be the only one to write this folder. It is made where its parent is."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, expected a folder to write: give another --output")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}, expected one to write to: make it first")
    path.mkdir(exist_ok=True)
    with locked(path / ABOUT):
        sweep(path)
        yield Folder(path)


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that a kill cut short is removed from it."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return parsed_lines(path, whole)


def parsed_lines(path: Path, data: bytes) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = parse(line)
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}")
        except ValueError as error:
            raise InputError(f"{path}, line {number}: no line of an audit ({error}): audit again") from error
        rows.append(row)
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """An object that an audit wrote; InputError for anything else."""
    try:
        found = parse(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no file of an audit ({error}), expected a folder that `invert-fast audit` wrote"
        ) from error
    return found


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_whole(path, b"".join(_json(row) for row in rows))


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(*(str(row.get(name)) for name in ("layer", "precision", "defence", "strategy")))


def cells_of(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    return [_cell(row) for row in rows]


def _short(value: Any) -> str:
    said = str(value)
    return said if len(said) < 120 else f"{said[:117]}…"
