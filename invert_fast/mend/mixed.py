"""Rows of several texts, one after the other in turns: each goes on one of the texts so far, or begins another."""

from __future__ import annotations

from collections.abc import Iterator

from ..types import Mended, Recovery
from .order import next_of
from .work import Work, bar, with_lost

TEXTS_MOST = 4
_TRIED = (1, 8, 64)


def mend_mixed(work: Work) -> list[Recovery]:
    """The texts, in the order in which they begin. Rows that go on none of them, or more than one, are one more at the
    end, as lost; so is what follows on them in their texts."""
    rows, texts, lost = work.rows, [], []  # of each text: what may follow, its rows, its tokens
    fits = work.fits(TEXTS_MOST * work.vocabulary.size)
    new = work.asked(more=len(rows))
    for place in _ticking(range(len(rows))):
        row, found = rows[place : place + 1], []
        open_ones = [*texts, (new, [], [])] if len(texts) < TEXTS_MOST else texts
        for count in _TRIED:
            for one in open_ones:
                on = next_of(work, one[0], fits, rows[one[1]], row, (count,))
                if on is not None:
                    found.append((on.residual, on.token, one))
            if found:
                break
        found.sort(key=lambda each: each[0])
        if not found:
            lost.append(place)
            continue
        residual, token, one = found[0]
        asked, own, ids = one
        rivals = [each for each in found[1:] if each[2][2] != ids or each[2][0] is new]  # equal so far: either will do
        if rivals and rivals[0][0] <= float(fits.reach(rows.new_tensor(residual), asked.length)):
            lost.append(place)
            continue
        if asked is new:
            texts.append(one)
            new = work.asked(more=len(rows))
        own.append(place)
        ids.append(token)
        asked.extend([token])
    return _recoveries(work, [(own, ids) for _, own, ids in texts], lost)


def _ticking(places: range) -> Iterator[int]:
    with bar(len(places), "sort rows") as ticks:
        for place in places:
            yield place
            ticks.update()


def _recoveries(work: Work, texts: list[tuple[list[int], list[int]]], lost: list[int]) -> list[Recovery]:
    rows, found = work.rows, []
    asked, work.asking = work.asking, []  # shared out by the rows of each text
    spent = sum(one.cost for one in asked)
    for own, ids in texts:
        work.spent = spent * len(own) // len(rows)
        said = f"{len(own)} of {len(rows)} rows are of this text, one of {len(texts)} that were mixed"
        found.append(work.done(work.inverted(rows[own], ids), Mended("mixed", said, tuple(own))))
    if lost:
        work.spent = spent * len(lost) // len(rows)
        nothing = with_lost(work.inverted(rows[:0]), work.read(rows[:0], rows[lost], 1)[:, 0].tolist())
        said = (
            f"{len(lost)} of {len(rows)} rows go on none of the {len(texts)} texts, or more than one of them: they are "
            "edited, of a text whose beginning or some rows are missing, or of yet another text"
        )
        found.append(work.done(nothing, Mended("mixed", said, tuple(lost))))
    return found
