"""Finished rows on disk: work that was stopped goes on where it was, and nothing is measured twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..types import InputError
from .atomic import write_whole


class Finished:
    """`rows`: key → figures, written whole after every row. setup: what all rows must have in common.

    Raises InputError when the file holds rows of another setup: figures of two models in one table would be a lie.
    """

    def __init__(self, path: Path, setup: dict[str, Any]):
        self.path, self.setup = path, setup
        self.rows: dict[str, Any] = {}
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            theirs, self.rows = dict(found["setup"]), dict(found["rows"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is no file of this command: give another --output") from None
        different = sorted(key for key in {*theirs, *setup} if theirs.get(key) != setup.get(key))
        if different:
            told = ", ".join(f"{key} {_short(theirs.get(key))}, now {_short(setup.get(key))}" for key in different)
            raise InputError(f"{path} holds rows of another setup ({told}): give another --output, or delete it")

    def add(self, key: str, row: Any) -> None:
        """Keep a row."""
        self.rows[key] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(f"{_json(name)}: {_json(figures)}" for name, figures in self.rows.items())
        write_whole(self.path, f'{{"setup": {_json(self.setup)},\n"rows": {{\n{rows}\n}}}}\n'.encode())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 80 else f"{said[:77]}…"
