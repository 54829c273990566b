"""Token ids → the pieces of text that they add, in order: joined, they are the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_UNFINISHED = "\ufffd"  # what a decoder writes for the first bytes of a character that more tokens make
_BEFORE, _LONGEST = 3, 8  # tokens of context that a piece is read in; tokens that one character takes at most


@dataclass(frozen=True)
class Piece:
    """The text of tokens `start … stop - 1`: of one, or of several that make a character only together."""

    start: int
    stop: int
    text: str


def pieces(ids: Sequence[int], spell: Callable[[list[int]], str]) -> list[Piece]:
    """Each token's text behind the tokens before it: decoders drop a space at the beginning of what they are given."""
    found: list[Piece] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        text = added(ids[max(0, start - _BEFORE) : start], ids[start:stop], spell)
        if text.endswith(_UNFINISHED) and stop - start < _LONGEST and stop < len(ids):
            continue
        found.append(Piece(start, stop, text))
        start = stop
    return found


def added(before: Sequence[int], ids: Sequence[int], spell: Callable[[list[int]], str]) -> str:
    """The text that tokens add to that of the tokens before them."""
    known, now = spell([*before]), spell([*before, *ids])
    return now[len(known) :] if now.startswith(known) else spell([*ids])
