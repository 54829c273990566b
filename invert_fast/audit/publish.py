"""From what was measured to what is read: summary.json and index.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..storage.atomic import write_whole
from .folder import PAGE, SUMMARY, write_json
from .page import page
from .report import read
from .summary import summary


def publish(folder: Path) -> dict[str, Any]:
    """Write both into a folder that is finished; returns the summary."""
    report = read(folder)
    found = summary(report)
    write_json(folder / SUMMARY, found)
    write_whole(folder / PAGE, page(report, found).encode("utf-8", "backslashreplace"))
    return found
