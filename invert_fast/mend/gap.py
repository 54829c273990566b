"""Rows that are missing inside a text: what stands before is inverted as always, short gaps are searched for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.read import positions
from ..types import InputError, Mended, Recovery, Status
from .filling import MOST, Filling, Search, by_prior
from .settle import Settled, settled, with_settled
from .work import Work, first_failure, not_certified, with_lost

_GAPS = 4  # that are looked for where nobody says where they are
_BEHIND = 2  # rows behind a gap that have to certify, where there are so many


@dataclass
class _Text:
    """What is known of a text so far: rows `[t, D]`, made ones in its gaps; given: of each the row it is, −1 for made
    ones; filled: position → what stands from there on."""

    rows: Tensor
    given: list[int]
    filled: dict[int, Filling]


def mend_gap(work: Work, missing: Sequence[bool]) -> list[Recovery]:
    """The text. missing `[T]`: which rows are not there; where all are, gaps are looked for where nothing fits."""
    return [_known(work, list(missing)) if any(missing) else _unknown(work)]


def _known(work: Work, missing: list[bool]) -> Recovery:
    if all(missing):
        raise InputError(
            f"all {len(missing)} rows are missing, expected some that are there: give the rows that leaked"
        )
    text, at, why = _Text(work.rows[:0], [], {}), 0, ""
    found = None
    while at < len(missing) and not why:
        stop = next((i for i in range(at, len(missing)) if missing[i]), len(missing))
        _append(text, work.rows[at:stop], range(at, stop))
        found = work.inverted(text.rows)
        at = next((i for i in range(stop, len(missing)) if not missing[i]), len(missing))
        failed = first_failure(found)
        if stop == len(missing):
            break
        if failed is not None:
            why = f"position {failed}, before the gap at {stop}, does not certify: mend that first"
        elif at == len(missing):
            why = f"no row stands behind the gap at {stop}, which alone could tell what its tokens are"
        else:
            filling, why = _fill(work, text, found, stop, at - stop, work.rows[at])
            if filling is None:
                break
            _append(text, work.made([*found.token_ids.tolist(), *filling.ids], at - stop), [-1] * (at - stop))
            text.filled[stop] = filling
    assert found is not None
    done = len(text.rows)
    lost = list(range(done, len(missing)))
    return _finished(work, text, found, why, lost)


def _unknown(work: Work) -> Recovery:
    text, why = _Text(work.rows, list(range(len(work.rows))), {}), ""
    found = work.inverted(text.rows)
    for _ in range(_GAPS):
        at = first_failure(found)
        if at is None or _goes_on(found, at):
            break
        if not at:
            why = "the first row fits no token: what is missing stood before it (edit 'front'), if anything is"
            break
        for count in range(1, MOST + 1):
            filling, why = _fill(work, text, positions(found, 0, at), at, count, text.rows[at])
            if filling is None:
                continue
            made = work.made([*found.token_ids[:at].tolist(), *filling.ids], count)
            rows = torch.cat([text.rows[:at], made, text.rows[at:]])
            tried = work.inverted(rows)
            behind = tried.status[at + count :][:_BEHIND]
            if (behind == Status.CERTIFIED).all():
                given = [*text.given[:at], *([-1] * count), *text.given[at:]]
                text, found = _Text(rows, given, {**text.filled, at: filling}), tried
                break
            why = f"what fills a gap at {at} makes one row fit, and those behind it not"
        else:
            break
    at = first_failure(found)
    if at is None or _goes_on(found, at):
        return _finished(work, text, found, "", [])
    lost = text.given[at:]
    text = _Text(text.rows[:at], text.given[:at], text.filled)
    return _finished(work, text, positions(found, 0, at), why, lost)


def _goes_on(found: Recovery, at: int) -> bool:
    """Whether what stands behind a failure certifies all the same: then that row is wrong, and none is missing."""
    behind = found.status[at + 1 :]
    return len(behind) > 0 and 2 * int((behind == Status.CERTIFIED).sum()) > len(behind)


def _append(text: _Text, rows: Tensor, given: Sequence[int]) -> None:
    text.rows, text.given = torch.cat([text.rows, rows]), [*text.given, *given]


def _fill(work: Work, text: _Text, found: Recovery, at: int, count: int, row: Tensor) -> tuple[Filling | None, str]:
    """What stands in a gap behind the text `found`, or why that is not known."""
    if count > MOST:
        return None, f"the gap at {at} has {count} rows, and fillings of more than {MOST} are too many to try"
    size, ids = work.vocabulary.size, found.token_ids.tolist()
    asked, fits = work.asked(ids, count + 1), work.fits(size ** (count + 1))
    whole = asked if work.decoder.layer.near_head else work.asked(ids, count + 1, work.decoder.full())
    search = Search(asked, work.lens, work.vocabulary, fits, text.rows[:at], row)
    filling = search.fill(
        by_prior(whole, work.vocabulary, ()), count, lambda some: by_prior(whole, work.vocabulary, some)
    )
    return (
        filling,
        "" if filling else f"nothing that was tried fills a gap of {count} at {at} so that the row behind fits",
    )


def _finished(work: Work, text: _Text, found: Recovery, why: str, lost: list[int]) -> Recovery:
    """The verdicts on what was filled in, and what is lost behind the last position that is known."""
    verdicts: list[Settled] = []
    for at, filling in text.filled.items():
        stop = min((p for p in text.filled if p > at), default=len(text.rows))
        verdicts.append(settled(work, text.rows, found, at, filling, stop))
    for one in verdicts:
        found = with_settled(found, one, work.vocabulary)
        if not one.trusted:
            found = not_certified(found, one.at)
    said = [one.sentence for one in verdicts]
    if why:
        said.append(f"{why}; what stands behind is not known")
    guesses = [0] * len(lost)
    here = [i for i, place in enumerate(lost) if place >= 0 and bool(work.rows[place].isfinite().all())]
    if here:
        read = work.read(work.rows[:0], work.rows[[lost[i] for i in here]], 1)[:, 0].tolist()
        for i, token in zip(here, read, strict=True):
            guesses[i] = token
    found = with_lost(found, guesses)
    given = (*text.given, *(place if place in {lost[i] for i in here} else -1 for place in lost))
    return work.done(found, Mended("gap", "; ".join(said) or "no row is missing", given))
