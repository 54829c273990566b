"""Tables that line up, for people: also where characters take two columns of a terminal, or none."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

_TWO, _NONE = ("W", "F"), ("Mn", "Me", "Cf")  # east-asian widths of two columns; categories that take none
_JAMO = range(0x1160, 0x1200)  # vowels and finals of Hangul, drawn into the syllable before them


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Columns that line up: those of these numbers to the left, the others to the right."""
    widths = [max(columns(str(row[i])) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = zip(map(str, row), widths, strict=True)
        return "  ".join(padded(cell, width, i not in left) for i, (cell, width) in enumerate(cells)).rstrip()

    return "\n".join([line(header), line(["─" * w for w in widths]), *map(line, rows)])


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(map(_columns, text))


def padded(text: str, width: int, right: bool = False) -> str:
    """A text with the spaces that it lacks of this many columns, behind or (right) before it."""
    gap = " " * max(0, width - columns(text))
    return gap + text if right else text + gap


def cut(text: str, width: int) -> str:
    """A text in this many columns at most; … stands for what was cut off."""
    if columns(text) <= width:
        return text
    taken, kept = 0, []
    for char in text:
        taken += _columns(char)
        if taken >= width:
            break
        kept.append(char)
    return "".join(kept) + "…"


def _columns(char: str) -> int:
    if char.isascii():
        return 1
    if unicodedata.category(char) in _NONE or ord(char) in _JAMO:
        return 0
    return 2 if unicodedata.east_asian_width(char) in _TWO else 1
