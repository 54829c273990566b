"""What was tried at the position each lane stands at, and how near it came."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.transfer import sent, sent_one

KEPT = 64  # nearest candidates remembered a position: more tokens than ever fit one state equally well


class Attempts:
    """Per lane, reset whenever the lane moves on. On the host, but for what is as wide as a state, and a copy of what
    is as wide as a vocabulary.

    tried `[S, V]` bool: candidates already verified at this position (tried_there: the same beside the model, where
    scores are); tries `[S]`: how many;
    near, near_ids, near_rank `[S, KEPT]`: the nearest candidates so far by residual, best first (+inf and −1 where
    fewer), and how many had been tried before each;
    near_state `[S, D]`, near_plain `[S]`: the state that the nearest one gives, and its residual as it is, not in the
    metric of the noise;
    steps `[S]`: optimisation steps taken; rivals `[S]`: candidates tried for being rivals of one that fitted;
    rivals_due `[S]` bool: the best fits, and tokens that may fit as well have to be tried before it is believed;
    nothing_left `[S]` bool: the strategy has no more candidates for this position;
    failed `[S]` bool: an earlier position of this text was not found;
    loudest `[S]`: the largest residual committed in this text so far, over the tolerance of its position.
    """

    def __init__(self, slots: int, vocab_size: int, width: int, device: torch.device):
        self.device = device
        self.tried = torch.zeros(slots, vocab_size, dtype=torch.bool)
        self.tried_there = self.tried if device.type == "cpu" else torch.zeros_like(self.tried, device=device)
        self.tries = torch.zeros(slots, dtype=torch.long)
        self.steps, self.rivals = torch.zeros_like(self.tries), torch.zeros_like(self.tries)
        self.near = torch.full((slots, KEPT), float("inf"))
        self.near_ids = torch.full((slots, KEPT), -1, dtype=torch.long)
        self.near_rank = torch.zeros_like(self.near_ids)
        self.near_state, self.near_plain = torch.zeros(slots, width, device=device), torch.zeros(slots)
        self.rivals_due = torch.zeros(slots, dtype=torch.bool)
        self.nothing_left = torch.zeros_like(self.rivals_due)
        self.failed = torch.zeros(slots, dtype=torch.bool)
        self.loudest = torch.zeros(slots)

    def reset(self, slots: Tensor) -> None:
        """These lanes moved on to another position: forget what was tried (tokens of a text are found one by one)."""
        used = slots[(self.tries[slots] > 0) | (self.steps[slots] > 0)]
        if not len(used):  # most lanes move on untried, and with nothing to forget
            return
        for table in (self.tried, self.tries, self.steps, self.rivals, self.rivals_due, self.nothing_left):
            table.index_fill_(0, used, 0)
        if self.tried_there is not self.tried:
            self.tried_there.index_fill_(0, sent_one(self.device, used), 0)
        self.near.index_fill_(0, used, float("inf"))
        self.near_ids.index_fill_(0, used, -1)

    def hear(self, slots: Tensor, loudness: Tensor, committed: Tensor) -> None:
        """What was committed in these lanes, by its residual over the tolerance: `[b, K]`, committed bool."""
        loudest = torch.where(committed, loudness, 0.0).amax(-1)
        self.loudest[slots] = torch.maximum(self.loudest[slots], loudest)

    def note(self, slots: Tensor, ids: Tensor, plain: Tensor, residual: Tensor, hidden: Tensor) -> None:
        """Add verified candidates: `ids [b, C]` (−1: none; those tried before count once), the states they give
        `hidden [b, C, D]`, beside the model, and their residuals `[b, C]`, as they are and in the metric of the noise.
        """
        fresh = (ids >= 0) & ~self.tried[slots[:, None], ids.clamp_min(0)]
        at, column = fresh.nonzero(as_tuple=True)
        self.tried[slots[at], ids[at, column]] = True
        if self.tried_there is not self.tried and len(at):
            lane, token = sent(self.device, slots[at], ids[at, column])
            self.tried_there.view(-1).index_fill_(0, lane * self.tried.shape[1] + token, True)
        rank = self.tries[slots][:, None] + fresh.cumsum(-1) - 1
        self.tries[slots] += fresh.sum(-1)
        near, order = torch.cat([self.near[slots], residual.masked_fill(~fresh, float("inf"))], -1).sort(
            dim=-1, stable=True
        )
        order = order[:, :KEPT]
        column = order[:, 0] - KEPT  # of the best, when it is one of these
        new = (column >= 0).nonzero().flatten()
        if len(new):
            self.near_plain[slots[new]] = plain[new, column[new]]
            lane, row, column = sent(self.device, slots[new], new, column[new])
            self.near_state[lane] = hidden[row, column].float()
        self.near[slots] = near[:, :KEPT]
        self.near_ids[slots] = torch.cat([self.near_ids[slots], ids], -1).gather(1, order)
        self.near_rank[slots] = torch.cat([self.near_rank[slots], rank], -1).gather(1, order)
