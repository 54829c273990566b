"""Hostile text → HTML in which nothing acts and nothing hides.

Markup is escaped. A character that is not simply seen (`visible` says which; here also blank letters, spaces of other
widths and heaped accents) is written out in a box, which no text can imitate.
"""

from __future__ import annotations

import html
import unicodedata

from ..storage.visible import visible

_BLANK = {0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0}  # letters and symbols that look like nothing at all
_MARKS_MOST = 2  # marks on one letter; more than that cover the lines above and below
BOX = "border:1px solid currentColor;border-radius:3px;padding:0 2px;font:0.75em monospace"


def name_of(char: str, marks: int = 0) -> str | None:
    """What a character is written as, None where it shows itself. marks: how many accents stand before it."""
    if (name := visible(char)) != char:
        return name
    kind, code = unicodedata.category(char), ord(char)
    selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    heaped = kind[0] == "M" and marks >= _MARKS_MOST
    hides = selector or heaped or code in _BLANK or (kind == "Zs" and char != " ")
    return char.encode("unicode_escape").decode("ascii") if hides else None


def boxed(text: str) -> str:
    """HTML of a text: markup escaped, what is not seen in boxes, spaces kept where the style says `pre-wrap`."""
    parts, marks = [], _MARKS_MOST  # an accent at the beginning would go on what stands before the text
    for char in text:
        name = name_of(char, marks)
        marks = marks + 1 if unicodedata.category(char)[0] == "M" else 0
        parts.append(html.escape(char) if name is None else f'<span style="{BOX}">{name}</span>')
        if char == "\n":
            parts.append("<br>")
    return "".join(parts)


def attribute(text: str) -> str:
    """The same for an attribute, where there are no boxes: `⟨\\x1b⟩`; what looks like that in the text is doubled."""
    doubled = text.replace("⟨", "⟨⟨").replace("⟩", "⟩⟩")
    return html.escape("".join(char if (name := name_of(char)) is None else f"⟨{name}⟩" for char in doubled))
