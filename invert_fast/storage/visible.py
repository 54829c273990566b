"""Text that others wrote, as it may be shown: what a terminal or a page would act on is written out instead.

Recovered text, names in files and what a server said can hold escape sequences, marks that turn the order of letters
round, and characters that nobody sees. JSON and JSONL keep them as they are.
"""

from __future__ import annotations

import unicodedata

_ACTS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format, halves of pairs, private, unassigned, separators


def visible(text: str, *, lines: bool = False, most: int | None = None) -> str:
    """The text with every character that is not simply drawn written as Python would: `\\x1b`, `\\u202e`, `\\n`.

    lines: line feeds and tabs stay, for text of several lines; most: characters shown, the rest is counted. What comes
    back can be printed, is UTF-8, and may be put into a page once that page's own marks are escaped (`html.escape`).
    """
    rest = "" if most is None or len(text) <= most else f"… and {len(text) - most:,} more characters"
    text = text if most is None else text[:most]
    if text.isprintable():
        return text + rest
    kept = "\n\t" if lines else ""
    return "".join(c if c in kept or unicodedata.category(c) not in _ACTS else _written(c) for c in text) + rest


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
