"""What lies in the folders of an audit, put together: the texts, and a line for each of them in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..types import InputError
from .folder import ABOUT, CELLS, FORMAT, RESULTS, TEXTS, TOKENS, cells_of, parsed_lines, read_json
from .settings import Cell

_NEEDED = ("layer", "precision", "defence", "strategy", "text", "tokens", "right", "status", "exact", "similarity")


@dataclass(frozen=True)
class Report:
    """about: see `run._about`; texts: by their number; tokens: by id, see `tokens.describe`; results: by cell, in the
    order in which they were worked on, a line a text in the order of the texts."""

    about: dict[str, Any]
    texts: dict[int, dict[str, Any]]
    tokens: dict[str, dict[str, Any]]
    results: dict[Cell, list[dict[str, Any]]]


def read(folder: Path) -> Report:
    """One folder, whole. InputError where a cell is missing, or what is there is no audit."""
    about = read_json(folder / ABOUT)
    if about.get("format") != FORMAT:
        raise InputError(f"{folder / ABOUT} is of format {about.get('format')!r}, expected {FORMAT}: audit again")
    try:
        cells = cells_of(about["cells"])
        done = cells_of(_lines(folder / CELLS))
        if missing := [cell for cell in cells if cell not in done]:
            raise InputError(
                f"{folder} is not finished ({len(missing)} of {len(cells)} cells are missing, the first is "
                f"{missing[0]}), expected all of them: run its command again with --resume"
            )
        texts = {int(row["index"]): row for row in _lines(folder / TEXTS)}
        results: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
        for row in _lines(folder / RESULTS):
            if absent := [name for name in _NEEDED if name not in row]:
                raise KeyError(absent[0])
            results[cells_of([row])[0]].append(row)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder} is damaged ({error!r}), expected what `invert-fast audit` wrote: audit again"
        ) from error
    for cell, rows in results.items():
        if sorted(row["text"] for row in rows) != sorted(texts):
            raise InputError(f"{folder}: {cell} has {len(rows)} texts of {len(texts)}: audit again")
    return Report(about, texts, read_json(folder / TOKENS), results)


def joined(folders: Sequence[Path]) -> Report:
    """All shards of an audit, each once; or one folder by itself. InputError that names what does not belong."""
    if not folders:
        raise InputError("there are no folders, expected those of all shards")
    parts = [(folder, read(folder)) for folder in folders]
    first, like = parts[0]
    shards: dict[tuple[int, int], Path] = {}
    for folder, part in parts:
        for name in ("settings", "cells", "texts_in_all", "input", "model", "dtype"):
            if part.about.get(name) != like.about.get(name):
                raise InputError(
                    f"{first} and {folder} differ in {name}, expected shards of one audit: give those that belong "
                    "together"
                )
        number, of = part.about.get("shard") or (1, 1)
        own = number, of
        if own in shards:
            raise InputError(f"{shards[own]} and {folder} are both shard {own[0]}/{own[1]}, expected each once")
        shards[own] = folder
    count = next(iter(shards))[1]
    if missing := [f"{i}/{count}" for i in range(1, count + 1) if (i, count) not in shards]:
        raise InputError(f"shards {', '.join(missing)} are missing, expected all {count}: give their folders as well")
    if len(shards) != count:
        raise InputError(f"there are {len(shards)} folders of {count} shards, expected each shard once")
    every = [part for _, part in parts]
    results = {
        cell: sorted((row for part in every for row in part.results[cell]), key=lambda row: row["text"])
        for cell in like.results
    }
    bare = sorted(part.about["bare_seconds_per_token"] for part in every)[len(every) // 2]
    texts = sorted((text for part in every for text in part.texts.items()), key=lambda item: item[0])
    tokens = {token: said for part in every for token, said in part.tokens.items()}
    about = {**like.about, "shard": None, "bare_seconds_per_token": bare}
    return Report(about, dict(texts), tokens, results)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return parsed_lines(path, path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), expected a folder that `invert-fast audit` wrote"
        ) from error
