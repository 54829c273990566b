"""Why a position is called what it is called, in words."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Status

ALONE = "fits, and no other token can come as near"
TRIED = "fits, and every token that could come as near was tried and does not"
EQUAL = "fits, but other tokens have the very same row in the embedding: nobody can tell them apart"
SHARED = "fits, but other tokens fit as well"
OTHER = "another token's state is nearer to the captured one"
OUTSIDE = "the nearest token, but further away than the noise of such states"
NOWHERE = "no token tried reproduces the state"
BEHIND = "a token before it was not found, so nothing is known of it"
MISLED = "a token before it came out as another, so it was looked for behind another text"


def reasons(
    ids: Sequence[int],
    found: Sequence[int],
    statuses: Sequence[Status],
    alone: Sequence[bool],
    equals: Sequence[int],
) -> list[str]:
    """One a position. ids: the text; found, statuses: what inverting gives; alone: no untried token can be as near;
    equals: usable tokens with the very row of each."""
    made, misled = [], False
    for token, instead, status, one_alone, same in zip(ids, found, statuses, alone, equals, strict=True):
        made.append(_reason(token == instead, status, one_alone, same > 1, misled))
        misled |= token != instead
    return made


def _reason(right: bool, status: Status, alone: bool, equal: bool, misled: bool) -> str:
    if status == Status.AFTER_FAILURE:
        return BEHIND
    if misled:
        return MISLED
    if status == Status.NOT_FOUND:
        return NOWHERE
    if not right:
        return OTHER
    if status == Status.BEST_MATCH:
        return OUTSIDE
    if status == Status.AMBIGUOUS:
        return EQUAL if equal else SHARED
    return ALONE if alone else TRIED
