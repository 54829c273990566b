"""Tokens that have no rows: which of them make the row behind them fit.

Their order is the model's prior. Every filling is tried together with what a lens then reads off the row behind it.
Of several missing tokens one after the other is exchanged for the best of all, the others held, beginning with the
likeliest: a wrong token elsewhere blurs the row, but the right one in its place still comes nearest mostly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lens.base import Lens
from ..model.vocabulary import Vocabulary
from .asked import Asked, Fits, read_by

MOST = 2  # tokens in a row without rows that are looked for
_TOKENS_MOST = 1 << 15  # of a vocabulary that are tried at a place, likeliest first
_BLOCKS = (64, 512)  # tried before all others are
_FEW = 1024  # tried at a place while others are not right yet
_SWEEPS = 3  # over the places of a gap
_KEPT = 4  # fillings of the first sweep that are gone on with


@dataclass(frozen=True)
class Filling:
    """ids: of the tokens without rows; behind: of the first row behind them; residual: of that row; others `[V]`: the
    residual that each token gives in the place of the last of them, all else equal, ∞ where it was not tried;
    whole: whether all were."""

    ids: tuple[int, ...]
    behind: int
    residual: float
    others: Tensor
    whole: bool


class Search:
    """Fillings behind one text. context `[C, D]`: its last rows, as given; row `[D]`: the first behind the gap."""

    def __init__(self, asked: Asked, lens: Lens, vocabulary: Vocabulary, fits: Fits, context: Tensor, row: Tensor):
        self.asked, self.lens, self.vocabulary, self.fits = asked, lens, vocabulary, fits
        self.context, self.row = context, row

    def fill(self, order: Tensor, count: int, likely: Callable[[Sequence[int]], Tensor]) -> Filling | None:
        """`count` tokens and the one behind them with which the row fits, None where none do. order `[V']`: tokens,
        likeliest first; likely: as that, behind some tokens."""
        if count == 1:
            return self._settled((), (), order)
        starts = [(int(order[0]),)]
        while len(starts[0]) < count:
            starts = [(*start, int(likely(start)[0])) for start in starts]
        best: dict[tuple[int, ...], float] = {starts[0]: float("inf")}
        for sweep in range(_SWEEPS):
            for place in reversed(range(count)):
                kept = sorted(best, key=best.__getitem__)[: _KEPT if sweep else 1]
                for ids in kept:
                    before, after = ids[:place], ids[place + 1 :]
                    tokens, _, residual = self._sweep(before, after, order[:_FEW])
                    for k in residual.topk(_KEPT, largest=False).indices.tolist():
                        best[(*before, int(tokens[k]), *after)] = float(residual[k])
                    ids = min(best, key=best.__getitem__)
                    if self._fits(best[ids], count):
                        return self._settled(ids[:-1], (), order)
        return None

    def _settled(self, before: tuple[int, ...], after: tuple[int, ...], order: Tensor) -> Filling | None:
        """The best last token, and what all others come to beside it."""
        position, start = self._position(len(before) + 1), 0
        others = torch.full((self.vocabulary.size,), torch.inf, device=order.device)
        for stop in (*_BLOCKS, len(order)):
            tokens, behind, residual = self._sweep(before, after, order[start:stop])
            others[tokens] = residual
            if len(tokens) and bool(self.fits.near(residual.min(), position)):
                break
            start = stop
        best = int(others.argmin())
        if not bool(self.fits.near(others[best], position)):
            return None
        token = int(behind[tokens.tolist().index(best)])
        ids = torch.tensor([[*before, w, token] for w in order.tolist()], device=order.device)
        beside = self.fits.residuals(self.asked.after(ids)[:, -1], self.row[None], position)[0]
        others[order] = torch.minimum(others[order], beside)
        best = int(others.argmin())
        whole = len(order) >= self.vocabulary.candidates
        return Filling((*before, best), token, float(others[best]), others, whole)

    def _sweep(self, before: tuple[int, ...], after: tuple[int, ...], tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each of `tokens [n]` between the tokens before and after: itself, what a lens reads behind it, and how near
        that comes."""
        some = torch.tensor([[*before, w, *after] for w in tokens.tolist()], device=tokens.device)
        if not len(tokens):
            return tokens, tokens, self.row.new_zeros(0)
        states = self.asked.after(some)
        context = torch.cat([self.context.expand(len(tokens), -1, -1), states], 1)
        rows = self.row.expand(len(tokens), -1)
        behind = torch.cat(
            [
                read_by(self.lens, self.vocabulary, c, r, 1)
                for c, r in zip(context.split(256), rows.split(256), strict=True)
            ]
        )
        found = self.asked.after(torch.cat([some, behind], 1))[:, -1]
        return tokens, behind[:, 0], self.fits.residuals(found, self.row[None], self._position(some.shape[1]))[0]

    def _position(self, count: int) -> int:
        return self.asked.length + count

    def _fits(self, residual: float, count: int) -> bool:
        return bool(self.fits.near(self.row.new_tensor(residual), self._position(count)))


def by_prior(asked: Asked, vocabulary: Vocabulary, ids: Sequence[int]) -> Tensor:
    """The allowed tokens behind `ids`, which follow the text that `asked` has of the whole model; likeliest first, by
    their ids where nothing stands before."""
    allowed = vocabulary.allowed.nonzero().flatten()
    if not asked.length and not ids:
        return allowed[:_TOKENS_MOST]
    last = asked.after(torch.tensor([list(ids)], device=allowed.device))[0, -1] if ids else asked.last
    assert last is not None
    scores = asked.decoder.log_probs(last[None])[0, allowed]
    return allowed[scores.argsort(descending=True)][:_TOKENS_MOST]
