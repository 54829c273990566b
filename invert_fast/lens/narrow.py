"""How many directions of a likelihood are worth having.

Tokens differ by much in some directions of a scorer and by little in the many others. Fitted from few tokens a number
of a state, the latter are mostly noise, which moves every candidate's score; among a hundred thousand of them some are
moved to the top. So the scorer of a wide state is kept to the directions in which tokens differ most beside the noise,
as many as draft the most held-out tokens right.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.embedding import Embedding
from ..ops.best_two import directions
from .linear import LinearLens

_ENOUGH = 32  # tokens a number of a state, from which on no direction is worth leaving out
_RANKS = (64, 128, 256, 512)
_LEAST_GAIN = 1.01  # times as many right
_LISTED, _ROWS_AT_ONCE = 64, 64
_WEIGHTS = (0.0, 1.0, 2.0, 4.0, 6.0)  # of the model's own prior


def wide(count: int, width: int) -> bool:
    """Whether a lens of states of this width, solved from so many tokens, may do better with fewer directions."""
    return count < _ENOUGH * width


def _first_directions(embedding: Embedding, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` directions in which tokens differ most in the metric G `[D_e, D_e]`: A and L `[D_e, rank]`, x·A those
    of a proxy and e·L those of a row, so that (x·A)·(e·L) scores like x·e in them."""
    scale = embedding.factor
    found = directions(embedding.matrix, gram * scale**2)
    assert found is not None, "rows that are no numbers are zeros there"
    return (found[0][:, :rank] * scale).float(), (found[1][:, :rank] / scale).float()


def narrowed(embedding: Embedding, project: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A scorer (see `linear.Part`) kept to so many directions."""
    to_low, low = _first_directions(embedding, gram, rank)
    return (project @ to_low) @ low.T, low @ low.T


def kept_to(lens: LinearLens, rank: int | None) -> LinearLens:
    """The same lens, whose scores of rows beyond the first are kept to so many directions (None: to all)."""
    if rank is None:
        return lens
    parts = {name: (part.project, part.gram) for name, part in lens.parts.items()}
    energies = {name: part.energy for name, part in lens.parts.items() if name != "rest"}
    parts["rest"] = narrowed(lens.vocabulary.embedding, *parts["rest"], rank)
    found = LinearLens(lens.vocabulary, parts, lens.accuracy, lens.repair, energies)
    found.rank, found.sums = rank, lens.sums
    return found


@torch.no_grad()
def best_rank(decoder: Decoder, lens: LinearLens, ids: Tensor, states: Tensor) -> int | None:
    """How many directions draft the most held-out tokens right, of texts `ids [b, T]` with `states [b, T, D]`; None for
    all of them."""
    if ids.shape[1] < 2:
        return None
    part, embedding = lens.parts["rest"], lens.vocabulary.embedding
    ranks = [rank for rank in _RANKS if rank <= embedding.shape[1] // 2]
    if not ranks:
        return None
    proxies, true = lens.proxies(states)[:, 1:].flatten(0, 1), ids[:, 1:].flatten()
    ends = decoder.ends(states)
    before = None if ends is None else ends[:, :-1].flatten(0, 1)
    to_low, low = _first_directions(embedding, part.gram, ranks[-1])
    rows, low_rows = proxies @ to_low, embedding.mapped(low)
    right = {}
    for rank in ranks:
        some = low_rows[:, :rank]
        bias = (-0.5 * some.square().sum(-1)).masked_fill(~lens.vocabulary.allowed, float("-inf"))
        right[rank] = _right(decoder, lambda x, b=bias, e=some: torch.addmm(b, x, e.T), rows[:, :rank], before, true)
    whole = _right(decoder, lambda x: embedding.scores(x, part.bias), proxies, before, true)
    best = max(ranks, key=lambda rank: right[rank])
    return best if right[best] >= _LEAST_GAIN * whole else None


def _right(
    decoder: Decoder, scores: Callable[[Tensor], Tensor], rows: Tensor, before: Tensor | None, true: Tensor
) -> int:
    """How many of the tokens `true [n]` are drafted right from rows `[n, K]` by these scores `[b, K] → [b, V]` and as
    much of the prior behind `before [n, D]` as is best for all."""
    found = torch.zeros(len(_WEIGHTS), dtype=torch.long, device=true.device)
    for part in torch.arange(len(true), device=true.device).split(_ROWS_AT_ONCE):
        listed, ids = scores(rows[part]).topk(_LISTED, -1)
        prior = torch.zeros_like(listed) if before is None else decoder.logits_of(before[part], ids)
        drafts = [ids.gather(1, (listed + weight * prior).argmax(-1, keepdim=True))[:, 0] for weight in _WEIGHTS]
        found += torch.stack([(draft == true[part]).sum() for draft in drafts])
    return int(found.max())
