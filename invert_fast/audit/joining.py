"""The folders of shards → one folder with the page of all their texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..storage.atomic import write_whole
from ..types import InputError
from .folder import ABOUT, TEXTS, TOKENS, opened, write_json, write_lines
from .publish import publish
from .report import joined


def join(folders: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Put the folders of all shards of an audit together in a new one; of a single folder, make its page again there.
    Returns what summary.json has. Raises InputError for folders that do not belong together, or are not finished."""
    report = joined([Path(folder) for folder in folders])
    with opened(Path(output)) as folder:
        if any(not path.name.startswith(".") for path in folder.path.iterdir()):
            raise InputError(f"{folder.path} has files in it, expected a new folder: give another --output")
        write_lines(folder.path / TEXTS, report.texts.values())
        write_json(folder.path / TOKENS, report.tokens)
        write_whole(folder.path / ABOUT, b"{}\n")
        for cell, rows in report.results.items():
            folder.add(cell, rows)
        write_json(folder.path / ABOUT, report.about)
        return publish(folder.path)
