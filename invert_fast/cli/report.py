"""What people read: scores of recovered texts against their references, and tables that line up."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """exact_match: share of prompts recovered at every token (by text where there are no reference ids);
    token_accuracy: share of positions, None without reference ids; similarity: mean difflib ratio of the texts."""

    prompts: int
    exact_match: float
    token_accuracy: float | None
    similarity: float


def score(rows: Iterable[dict], references: Sequence[tuple[list[int] | None, str]]) -> Score:
    """rows: `{token_ids, text}` of each recovered prompt; references: its (ids or None, text), in the same order."""
    exact, similar, right, positions = 0, 0.0, 0, 0
    for row, (ids, text) in zip(rows, references, strict=True):
        found = row["token_ids"]
        exact += found == ids if ids is not None else row["text"] == text
        similar += difflib.SequenceMatcher(None, row["text"] or "", text, autojunk=False).ratio()
        if ids is not None:
            right += sum(a == b for a, b in zip(found, ids, strict=False))
            positions += max(len(ids), len(found))
    n = len(references)
    if not n:
        return Score(0, 1.0, None, 1.0)
    known = all(ids is not None for ids, _ in references)
    accuracy = (right / positions if positions else 1.0) if known else None
    return Score(n, exact / n, accuracy, similar / n)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns that line up: the first to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()

    return "\n".join([line(header), line(["─" * w for w in widths]), *map(line, rows)])
