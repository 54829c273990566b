"""What the model would go on with after each hypothesis of a search."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..engine.protocol import Context
from ..model.branch import begin, branch
from ..model.lanes import Lanes
from ..model.own_lanes import lanes_of
from ..model.transfer import picked, sent_one

_UNIFORM = 0.01  # of the prior: a password is not what the model would write


class Continuations:
    """log p(next token | hypothesis) of lanes of hypotheses, whose last states are `state [B·W, D]`.

    States of the last layer give it for nothing. For an inner layer the whole model runs along in lanes of its own. The
    first token has no prefix: all tokens are equal there.
    """

    def __init__(self, context: Context, lanes: Lanes, state: Tensor):
        self.context, self.lanes, self.state = context, lanes, state
        self.mirror: Lanes | None = None
        self.decoder = context.decoder
        self._charged = torch.zeros_like(lanes.forward_tokens)
        if not context.decoder.layer.near_head:
            self.decoder = context.decoder.full()
            self.mirror = lanes_of(self.decoder, lanes.slots, lanes.max_len)
            self.mirror.target_length[:] = lanes.target_length
            self.state = torch.zeros(lanes.slots, self.decoder.width, device=state.device)
        allowed = context.vocabulary.allowed
        even = torch.full(allowed.shape, -math.log(max(1, context.vocabulary.candidates)), device=allowed.device)
        self.even = even.masked_fill(~allowed, float("-inf"))

    def begin(self, lanes: Tensor, ids: Tensor, counts: Tensor) -> None:
        """These lanes have the first `counts [b]` of `ids [b, K]`."""
        if self.mirror is not None:
            self.state[sent_one(self.state.device, lanes)] = begin(self.mirror, lanes, ids, counts)

    def go_on(self, to: Tensor, of: Tensor, ids: Tensor) -> None:
        """Lanes `to [n]` go on from lanes `of [n]` with `ids [n]`."""
        if self.mirror is not None:
            branch(self.mirror, to, of)
            states = self.mirror.draft(to, ids[:, None])[:, 0].float()
            self.state[sent_one(states.device, to)] = states
            self.mirror.commit(to, ids[:, None], torch.ones_like(to), torch.arange(len(to)))

    def log(self, lanes: Tensor, weight: float = 1.0) -> Tensor:
        """`[n, V]`, times a weight; −∞ for what is no candidate."""
        if not weight:
            return self.even.expand(len(lanes), -1)
        found = self.decoder.log_probs(picked(self.state, lanes))
        found = torch.logaddexp(found + math.log(1 - _UNIFORM), self.even + math.log(_UNIFORM))
        first = sent_one(found.device, self.lanes.length[lanes] == 0)
        found = weight * found.masked_fill_(self.even.isinf(), float("-inf"))
        return torch.where(first[:, None], self.even, found)

    def spent(self) -> Tensor | int:
        """Tokens that the whole model computed since this was last asked, `[B·W]`."""
        if self.mirror is None:
            return 0
        spent = self.mirror.forward_tokens - self._charged
        self._charged = self.mirror.forward_tokens.clone()
        return spent
