"""Edited states → texts: which edit was named, and what each of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..types import InputError, Recovery, States
from .front import mend_front
from .gap import mend_gap
from .mixed import mend_mixed
from .order import mend_order
from .steering import mend_steering
from .work import Inverts, Work

EDITS = ("gap", "front", "order", "steering", "mixed")


def mend_all(
    inverter: Inverts,
    batch: Sequence[States],
    edit: str,
    *,
    missing: Sequence[int] = (),
    direction: Any = None,
    states_dtype: str | None = None,
    compute_dtype: str | None = None,
) -> list[Recovery]:
    """The texts of states, where this was done to them.

    edit: `gap` (rows are missing), `front` (the text began before), `order` (rows are shuffled), `steering` (one vector
    was added to all rows) or `mixed` (rows of several texts in turns: then there are several recoveries of each);
    missing: positions of the text that have no row, of a `gap`; rows with NaN or of zeros alone are missing, too;
    direction `[D]`: of the `steering` vector, where it is known, its strength is not; states_dtype, compute_dtype:
    precisions of the capture, instead of what the states say. InputError for what is no edit or does not go with it.
    """
    for index, one in enumerate(batch):
        inverter.checked(index, replace(one, hidden=one.hidden[:0]))  # what it says of itself
    toward = None if direction is None else torch.as_tensor(direction).detach()
    told = states_dtype, compute_dtype
    return [found for states in batch for found in mend(inverter, states, edit, missing, toward, told)]


def mend(
    inverter: Inverts,
    states: States,
    edit: str,
    missing: Sequence[int] = (),
    direction: Tensor | None = None,
    precision: tuple[str | None, str | None] = (None, None),
) -> list[Recovery]:
    """One of the texts of `mend_all`. precision: stored and computed in, where that was told."""
    if edit not in EDITS:
        raise InputError(f"edit '{edit}' is unknown, expected one of {', '.join(EDITS)}: `diagnose` names it")
    for name, given, only in (("missing", bool(missing), "gap"), ("direction", direction is not None, "steering")):
        if given and edit != only:
            raise InputError(f"{name} was given with edit '{edit}', expected with '{only}' alone: leave it out")
    rows, gone = placed(states.hidden.detach(), missing)
    if edit != "gap" and any(gone):
        raise InputError(
            f"row {gone.index(True)} is NaN, Inf or zero throughout, expected rows of numbers with edit '{edit}': "
            "leave it out, or mend the gap first (edit 'gap')"
        )
    there = [i for i, out in enumerate(gone) if not out]
    shown = replace(states, hidden=states.hidden.detach()[: len(rows)] if not any(gone) else rows[there])
    decoder = inverter.decoder
    if len(rows) + len(decoder.reading.prefix) + 2 > decoder.max_length:
        raise InputError(
            f"a text has {len(rows)} rows, expected {decoder.max_length - 2} at most where some are searched for: give "
            "the first of them"
        )
    read = decoder.reading.rows(rows.to(decoder.device).float().nan_to_num())
    work = Work(
        inverter,
        torch.where(torch.tensor(gone, dtype=torch.bool, device=read.device)[:, None], torch.nan, read),
        _precision(shown, precision),
    )
    if not len(rows):
        return [work.inverted(work.rows)]
    if edit == "gap":
        return [_of_file(one, missing) for one in mend_gap(work, gone)]
    if edit == "steering":
        return mend_steering(work, direction)
    return {"front": mend_front, "order": mend_order, "mixed": mend_mixed}[edit](work)


def _of_file(found: Recovery, missing: Sequence[int]) -> Recovery:
    """The recovery whose rows are counted as they were given, without those that are missing."""
    if not missing or found.mended is None:
        return found
    rows = tuple(row if row < 0 else row - sum(at < row for at in set(missing)) for row in found.mended.rows)
    return replace(found, mended=replace(found.mended, rows=rows))


def placed(rows: Tensor, missing: Sequence[int] = ()) -> tuple[Tensor, list[bool]]:
    """Rows `[T, D]` at their positions of the text, where those at `missing` are not among them; and of each position
    whether its row is missing, or as good as that."""
    count = len(rows) + len(set(missing))
    if bad := [at for at in missing if not 0 <= at < count]:
        raise InputError(
            f"position {bad[0]} has no row, they say, of a text of {count} tokens ({len(rows)} rows and "
            f"{len(set(missing))} missing), expected 0 to {count - 1}: count from the first token"
        )
    whole = torch.full((count, rows.shape[1]), torch.nan, dtype=rows.dtype, device=rows.device)
    there = torch.tensor([at for at in range(count) if at not in set(missing)], dtype=torch.long, device=rows.device)
    whole[there] = rows
    gone = ~whole.isfinite().all(-1) | (whole == 0).all(-1)
    return whole, gone.tolist()


def _precision(states: States, told: tuple[str | None, str | None]) -> tuple[str, str]:
    (stored, computed), shown = told, states.precision()
    return stored or shown[0], computed or shown[1]
