"""States that no reading explains: what they may have been edited by, tried by mending it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..mend.front import mend_front
from ..mend.gap import mend_gap
from ..mend.mixed import mend_mixed
from ..mend.order import mend_order
from ..mend.steering import mend_steering
from ..mend.work import Work
from ..types import InputError, Recovery, Status
from .trial import MOST, Trials

CHEAP, GAPS, DEAR = ("steering", "order", "mixed"), ("gap",), ("front",)  # in the order in which they are tried
_WAYS: dict[str, Callable[[Work, Sequence[bool]], list[Recovery]]] = {
    "steering": lambda work, missing: mend_steering(work),
    "order": lambda work, missing: mend_order(work),
    "mixed": lambda work, missing: mend_mixed(work),
    "gap": mend_gap,
    "front": lambda work, missing: mend_front(work, 1),
}
_SOME = 1e-3  # of a row: what a vector that was added has of length, at least
_FEW = 2  # rows of each text that two mixed ones have at least


def edit_of(
    trials: Trials, rows: Tensor, edits: Sequence[str], missing: Sequence[bool] = ()
) -> tuple[str, list[Recovery], float] | None:
    """The first of `edits` under which at least half of `rows [T, D]` certify, what it gives, and their share; None
    where none does. missing `[T]`: rows that are not there."""
    gone = list(missing) or [False] * len(rows)
    rows = torch.where(torch.tensor(gone, device=rows.device)[:, None], torch.nan, rows)
    read = trials.given.decoder.reading.rows(rows)
    for edit in edits:
        try:
            found = _WAYS[edit](Work(trials.given, read, trials.precision), gone)
        except InputError:  # the states are not such that it could be
            continue
        share = certified_rows(found) / max(1, len(rows) - sum(gone))
        if share >= MOST and (any(gone) or _told(edit, found, read)):
            return edit, found, min(1.0, share)
    return None


def certified_rows(found: Sequence[Recovery]) -> int:
    """How many of the rows that were given certify; what was filled in is not counted."""
    return sum(
        int(status == Status.CERTIFIED)
        for one in found
        if one.mended is not None
        for status, row in zip(one.status, one.mended.rows, strict=True)
        if row >= 0
    )


def _told(edit: str, found: Sequence[Recovery], given: Tensor) -> bool:
    """Whether the edit shows in what was mended: nothing is mixed that is one text, or out of order that is not."""
    rows = [one.mended.rows for one in found if one.mended is not None]
    if edit == "mixed":
        return sum(int((one.status == Status.CERTIFIED).sum()) >= _FEW for one in found) > 1
    if edit == "order":
        placed = [row for row, status in zip(rows[0], found[0].status, strict=True) if status == Status.CERTIFIED]
        return placed != sorted(placed)
    if edit == "steering":
        vectors = [one.mended.vector for one in found if one.mended is not None]
        length = max(float(np.linalg.norm(vector)) for vector in vectors if vector is not None)
        return length > _SOME * float(given.norm(dim=-1).median())
    if edit == "gap":
        return -1 in rows[0]
    return True
