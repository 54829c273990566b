"""Rows out of order: each next one is that of the rest which some token, behind those before, reproduces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.best_two import MANY_TOKENS
from ..types import Mended, Recovery
from .asked import Asked, Fits
from .filling import by_prior
from .work import Work, bar, with_lost

_TRIED = (1, 4, 16, 64)  # tokens of each row that a lens reads first
_ROWS = 64  # whose scores of all tokens are held at once
_LIKELY = 256  # of a large vocabulary: tokens that the model would go on with, where none of these is one


@dataclass(frozen=True)
class Next:
    """The row (its place among those asked about), its token and residual; and how near any other row came."""

    row: int
    token: int
    residual: float
    second: float


def next_of(work: Work, asked: Asked, fits: Fits, context: Tensor, rows: Tensor, tried: Sequence[int] = _TRIED):
    """What goes on after the text that is `asked`, of `rows [R, D]`; context: the rows of that text. None where none
    fits."""
    seen: set[int] = set()
    best = torch.full((len(rows),), torch.inf, device=rows.device)
    token = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    lists = work.read(context, rows, tried[-1])
    further = tried[-1] == _TRIED[-1] and work.vocabulary.size >= MANY_TOKENS  # of which a list has few
    for offered in (*(lists[:, :count] for count in tried), *([None] if further else [])):
        offered = _beyond(work, asked, rows, token) if offered is None else offered
        new = sorted(set(offered.flatten().tolist()) - seen)
        seen.update(new)
        if not new:
            continue
        ids = torch.tensor(new, device=rows.device)
        residual = fits.residuals(asked.after(ids[:, None])[:, 0], rows, asked.length)
        least, at = residual.min(-1)
        token, best = torch.where(least < best, ids[at], token), torch.minimum(best, least)
        if bool(fits.near(best.min(), asked.length)):
            row = int(best.argmin())
            others = torch.cat([best[:row], best[row + 1 :]])
            second = float(others.min()) if len(others) else float("inf")
            return Next(row, int(token[row]), float(best[row]), second)
    return None


@torch.no_grad()
def _beyond(work: Work, asked: Asked, rows: Tensor, token: Tensor) -> Tensor:
    """What the model itself would go on with and, of each row, what the best token of its list, `token [R]`, tells of
    the others."""
    offered = [by_prior(asked, work.vocabulary, ())[:_LIKELY]] if asked.length and work.decoder.layer.near_head else []
    states = asked.after(token[:, None])[:, 0]
    for some, base, wrong in zip(*(table.split(_ROWS) for table in (rows, states, token)), strict=True):
        scores = work.lens.change_scores(some, base, wrong).masked_fill(~work.vocabulary.allowed, float("-inf"))
        offered.append(scores.topk(min(_TRIED[-1], work.vocabulary.candidates)).indices.flatten())
    return torch.cat(offered)


def mend_order(work: Work) -> list[Recovery]:
    """The text whose rows these are in another order. It ends where no row, or more than one, goes on: what is left is
    put behind it, as lost."""
    rows, order, ids = work.rows, [], []
    fits, asked = work.fits(len(rows) * work.vocabulary.size), work.asked(more=len(rows))
    left, why = list(range(len(rows))), ""
    with bar(len(rows), "order rows") as ticks:
        while left:
            found = next_of(work, asked, fits, rows[order], rows[left])
            if found is None:
                why = "none of the others goes on from there: they are of another text, edited, or rows are missing"
                break
            if found.second <= float(fits.reach(rows.new_tensor(found.residual), asked.length)):
                why = "several of the others go on from there equally well, so that their order is not known"
                break
            order.append(left.pop(found.row))
            ids.append(found.token)
            asked.extend([found.token])
            ticks.update()
    recovery = work.inverted(rows[order], ids)
    said = f"{len(order)} of {len(rows)} rows were put in order, each by the token that reproduces it behind the others"
    if left:
        said += f"; {why}"
        recovery = with_lost(recovery, work.read(rows[:0], rows[left], 1)[:, 0].tolist())
    return [work.done(recovery, Mended("order", said, (*order, *left)))]
