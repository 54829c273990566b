"""A strategy that drafts a text which is known already, and where it is wrong tries the next best of a list.

It needs no lens of the layer that is looked at: the text was drafted elsewhere. What it proposes is verified as any
other draft is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.protocol import Block, Context, Run
from ..lens.base import Lens
from ..model.transfer import picked, sent_one, told_one

_FURTHER, _IN_ALL = 128, 1024  # of all tokens, where none of a list fits: at once, and with the list


@dataclass(frozen=True)
class Known:
    """ids `[T]`: the one text; lists `[T, C]`: what else may stand at each position, best first, −1 for none; lens:
    what orders all other tokens, where lists are too short to tell that a row is of none; ends `[T, D]`: with it, see
    `Decoder.ends`, of the rows."""

    ids: Sequence[int]
    lists: Tensor
    lens: Lens | None = None
    ends: Tensor | None = None
    name: str = "known"

    def bind(self, context: Context) -> _Proposer:
        return _Proposer(self, context)


@dataclass
class _Proposer:
    known: Known
    context: Context
    offered: int = field(default=-1)  # position whose list was tried

    def begin(self, slots: Tensor) -> None:
        self.offered = -1

    def propose(self, slots: Tensor) -> list[Run | Block]:
        at = int(self.context.lanes.length[slots])
        if not int(self.context.attempts.tries[slots]):
            rest = torch.tensor([list(self.known.ids[at:])], device=slots.device)
            return [Run(slots, rest, torch.full_like(slots, rest.shape[1]))]
        if self.offered == at:
            return self._further(slots, at)
        self.offered = at
        return [Block(slots, self.known.lists[at : at + 1].to(slots.device))]

    def _further(self, slots: Tensor, at: int) -> list[Run | Block]:
        """The best of all tokens that were not tried, by the state of the best that was, and by what the model would go
        on with."""
        lens, lanes, attempts = self.known.lens, self.context.lanes, self.context.attempts
        if lens is None or int(attempts.tries[slots]) >= _IN_ALL:
            return []
        wrong = sent_one(lanes.device, attempts.near_ids[slots, 0].clamp_min(0))
        scores = lens.change_scores(lanes.target(slots), picked(attempts.near_state, slots), wrong).log_softmax(-1)
        if at and self.known.ends is not None:
            scores = scores + self.context.decoder.log_probs(self.known.ends[at - 1 : at])
        banned = attempts.tried_there[sent_one(lanes.device, slots)] | ~self.context.vocabulary.allowed
        value, ids = scores.masked_fill(banned, float("-inf")).topk(min(_FURTHER, scores.shape[1]))
        ids = told_one(ids.masked_fill(value.isinf(), -1))
        return [Block(slots, ids)] if bool((ids >= 0).any()) else []
