"""How texts begin: with what the tokenizer puts before every text, mostly. Nothing stands before a first token, so its
state is known, and a row that is like it is drafted so whatever a lens makes of it: a map that was fitted on the states
of all tokens is poor at the one whose states are like no other's, as those of a BOS are in many models.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.samples import opening_of

_LIKE = 0.3  # of its length: how far a row may be off, by noise of whatever kind
_LEAD = 20.0  # nats
_ERROR = 1e-4

_known: WeakKeyDictionary[Decoder, tuple[int, Tensor] | None] = WeakKeyDictionary()


@torch.no_grad()
def begin_as_usual(decoder: Decoder, first: Tensor, ids: Tensor, scores: Tensor, error: Tensor) -> None:
    """Put the usual first token first in the lists `ids, scores [b, C]` of those first rows `first [b, D]` that are
    like its state, and say so in `error [b]`; in place."""
    if (known := _usual(decoder)) is None:
        return
    token, state = known
    like = ((first.float() - state).norm(dim=-1) <= _LIKE * state.norm())[:, None]
    others = ids == token
    whole = torch.cat([torch.full_like(ids[:, :1], token), ids.masked_fill(others, -1)], -1)
    lead = scores[:, :1] + _LEAD
    scored = torch.cat([lead, scores.masked_fill(others, -torch.inf)], -1)
    order = (whole < 0).long().argsort(dim=-1, stable=True)[:, : ids.shape[1]]
    ids.copy_(torch.where(like, whole.gather(1, order), ids))
    scores.copy_(torch.where(like, scored.gather(1, order), scores))
    error.copy_(torch.where(like[:, 0], torch.full_like(error, _ERROR), error))


def _usual(decoder: Decoder) -> tuple[int, Tensor] | None:
    """The token, and its state as the first of a text `[D]`; None where texts begin anyhow."""
    if decoder not in _known:
        ids = [] if decoder.reading.prefix else opening_of(decoder)
        found = None
        if ids and ids[0] < decoder.vocab_size:
            state = decoder.states(torch.tensor([ids], device=decoder.device))[0, 0].float()
            found = (ids[0], state) if bool(state.isfinite().all()) else None
        _known[decoder] = found
    return _known[decoder]
