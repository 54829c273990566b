"""Finished rows on disk: a run that was stopped goes on where it was, and never measures a row twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Store:
    """`rows`: key → figures, written whole after every row. setup: what all rows must have in common.

    Raises SystemExit when the file holds rows of another setup: figures of two models in one table would be a lie.
    """

    def __init__(self, path: Path, setup: dict[str, Any]):
        self.path, self.setup, self.rows = path, setup, {}
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            theirs, self.rows = found["setup"], found["rows"]
        except (ValueError, KeyError, TypeError):
            raise SystemExit(f"{path} is no file of this command: give another --output") from None
        different = sorted(key for key in {*theirs, *setup} if theirs.get(key) != setup.get(key))
        if different:
            told = ", ".join(f"{key} {theirs.get(key)!r}, now {setup.get(key)!r}" for key in different)
            raise SystemExit(f"{path} holds rows of another setup ({told}): give another --output, or delete it")

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.rows[key] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = json.dumps({"setup": self.setup, "rows": self.rows}, indent=1, ensure_ascii=False)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(whole, encoding="utf-8")
        os.replace(part, self.path)
