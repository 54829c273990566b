"""What is to be thought of a filling, once the rows behind it are inverted: is it alone, and may they be believed?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.tolerances import ERROR
from ..model.vocabulary import Vocabulary
from ..types import Recovery, Status
from .filling import Filling
from .work import Work, first_failure

_ROWS = 16  # behind a gap that rivals are tried on
_RIVALS = 64  # tried on them
_LEAST = 2  # rows behind a gap, for it to be certified


@dataclass(frozen=True)
class Settled:
    """at: the first position that was filled; alternatives: tokens that explain the rows behind as well as its last;
    margin: from its residual to the nearest rival's; trusted: whether the rows behind may stay certified."""

    at: int
    filling: Filling
    status: Status
    alternatives: tuple[int, ...]
    margin: float
    trusted: bool
    sentence: str


def settled(work: Work, rows: Tensor, found: Recovery, at: int, filling: Filling, stop: int) -> Settled:
    """rows `[T, D]`, found: of the text with its gaps filled; stop: the next gap, or the end. Rivals of the filling's
    last token, all else equal, are tried on the rows behind."""
    count, best, size = len(filling.ids), filling.ids[-1], work.vocabulary.size
    fits = work.fits(size ** (count + 1))
    start, failed = at + count, first_failure(found)
    sure = max(0, min(stop, stop if failed is None else failed) - start)
    position = start + len(work.decoder.reading.prefix)
    others = filling.others.clone()
    others[work.vocabulary.representative == work.vocabulary.representative[best]] = torch.inf
    reach = fits.reach(others.new_tensor(filling.residual), position)
    near, ids = others.sort()
    rivals = ids[near <= reach]
    left = (
        _unlike(work, rows[start : start + min(sure, _ROWS)], found, filling, rivals[:_RIVALS].tolist(), at)
        if len(rivals)
        else []
    )
    more = len(rivals) > _RIVALS
    equals = [i for i in work.vocabulary.equals(best) if i != best]
    alone = filling.whole and not left and not more and not equals
    searched = "every token was tried" if filling.whole and count == 1 else "not all that may stand there were tried"
    if left or more or equals:
        status = Status.AMBIGUOUS
        many = f"{'at least ' if more else ''}{len(left) + len(equals)} others explain the rows behind as well"
    elif alone and count == 1 and sure >= _LEAST:
        status, many = Status.CERTIFIED, "no other token explains the rows behind"
    else:
        status = Status.BEST_MATCH
        it = "it explains" if count == 1 else "they explain"
        few = f"; {sure} rows behind are too few to certify it" if sure < _LEAST else ""
        many = f"{it} the rows behind{few}" + ("" if filling.whole and count == 1 else "; others may, too")
    where = (
        f"position {at} had no row and was" if count == 1 else f"positions {at} and {start - 1} had no rows and were"
    )
    every = filling.whole and count == 1
    enough = sure >= (min(_LEAST, stop - start) if every else _LEAST)
    trusted = enough and (fits.exact or (every and not left and not more))
    sentence = f"{where} filled ({searched}): {many}"
    if not enough:
        sentence += "; too few rows behind it fit for them to be certified"
    elif not trusted:
        sentence += "; states so coarse do not certify what stands behind a filling that is not alone"
    margin = max(0.0, float(near[0]) - filling.residual) if len(near) and bool(near[0].isfinite()) else 0.0
    return Settled(at, filling, status, tuple(sorted({*left, *equals})), margin, trusted, sentence)


def _unlike(work: Work, behind: Tensor, found: Recovery, filling: Filling, rivals: list[int], at: int) -> list[int]:
    """Of these rivals those that none of the rows `behind [n, D]` tells from the filling's last token."""
    count = len(filling.ids)
    if not len(behind):
        return rivals
    fits, ids = work.fits(work.vocabulary.size ** (count + 1)), found.token_ids.tolist()
    tail = ids[at + count : at + count + len(behind)]
    asked = work.asked(ids[:at], count + len(tail))
    ways = torch.tensor([[*filling.ids[:-1], w, *tail] for w in (filling.ids[-1], *rivals)], device=behind.device)
    positions = asked.length + count + torch.arange(len(tail), device=behind.device)
    own, *others = fits.along(asked.after(ways)[:, count:], behind, asked.length + count)
    reach = fits.reach(own, positions)
    return [w for w, residual in zip(rivals, others, strict=True) if not bool((residual > reach).any())]


def with_settled(found: Recovery, one: Settled, vocabulary: Vocabulary) -> Recovery:
    """The recovery with the verdict on a filling in the place of what the engine said of made rows."""
    count = len(one.filling.ids)
    which = slice(one.at, one.at + count)
    tables = {name: getattr(found, name).copy() for name in ("token_ids", "residual", "margin", "status")}
    tables["token_ids"][which] = one.filling.ids
    tables["residual"][which], tables["margin"][which] = one.filling.residual, one.margin
    tables["status"][which] = int(one.status)
    error = None if found.error_bound is None else found.error_bound.copy()
    if error is not None:
        error[which] = ERROR if one.status == Status.CERTIFIED else 1.0
    others = {
        position: also for position, also in found.alternatives.items() if not one.at <= position < one.at + count
    }
    if one.alternatives:
        others[one.at + count - 1] = list(one.alternatives)
    return replace(found, error_bound=error, alternatives=others, **tables)
