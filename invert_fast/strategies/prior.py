"""Candidates in the order of the model's own next-token probability (VMA, 2505.18332), batched over lanes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.protocol import Block, Context, Run
from ..model.lanes import Lanes
from ..model.own_lanes import lanes_of
from ..model.transfer import picked, sent_one
from .blocks import growing_blocks


@dataclass(frozen=True)
class PriorOrder:
    """first_block: candidates in the first block of a position, each later one is `growth` times the one before;
    max_candidates: give up on a position after that many (None: try all)."""

    first_block: int = 16
    growth: int = 4
    max_block: int = 1024
    max_candidates: int | None = None
    name: str = "prior"

    def bind(self, context: Context) -> _Proposer:
        """See `Strategy`."""
        return _Proposer(self, context)


class _Proposer:
    def __init__(self, settings: PriorOrder, context: Context):
        self.settings, self.context = settings, context
        self.prior = NextTokenPrior(context)

    def begin(self, slots: Tensor) -> None:
        self.prior.begin(slots)

    def propose(self, slots: Tensor) -> list[Run | Block]:
        settings = self.settings
        if settings.max_candidates is not None:
            slots = slots[self.context.attempts.tries[slots] < settings.max_candidates]
        if not len(slots):
            return []
        return [
            *growing_blocks(
                self.context, slots, self.prior.scores(slots), settings.first_block, settings.growth, settings.max_block
            )
        ]


class NextTokenPrior:
    """log p(next token | committed prefix) of every lane, `[b, V]`.

    States of the last layer give it for free: the head applied to the target row before the position. For an inner
    layer a second set of lanes runs the whole model over the committed tokens, each token once; its work counts.
    The first position has no prefix: all tokens are equal there.
    """

    def __init__(self, context: Context):
        self.context = context
        self.mirror: Lanes | None = None
        if not context.decoder.layer.near_head:
            self.mirror = lanes_of(context.decoder.full(), context.lanes.slots, context.lanes.max_len)
            self.last = torch.zeros(context.lanes.slots, self.mirror.decoder.width, device=context.decoder.device)

    def begin(self, slots: Tensor) -> None:
        if self.mirror is not None:
            self.mirror.length[slots] = 0
            self.mirror.target_length[slots] = self.context.lanes.target_length[slots]

    def scores(self, slots: Tensor) -> Tensor:
        lanes, decoder = self.context.lanes, self.context.decoder
        length = lanes.length[slots]
        if self.mirror is None:
            rows = picked(lanes.targets, slots, (length - 1).clamp_min(0))
        else:
            self._catch_up(slots)
            rows, decoder = picked(self.last, slots), self.mirror.decoder
        return decoder.log_probs(rows).masked_fill_(sent_one(rows.device, length == 0)[:, None], 0.0)

    def _catch_up(self, slots: Tensor) -> None:
        """Run the tokens committed since the last look through the whole model."""
        assert self.mirror is not None
        lanes, mirror = self.context.lanes, self.mirror
        behind = lanes.length[slots] - mirror.length[slots]
        slots, behind = slots[behind > 0], behind[behind > 0]
        if not len(slots):
            return
        step = torch.arange(int(behind.max()))
        columns = (mirror.length[slots][:, None] + step).clamp_max(lanes.max_len - 1)
        ids = lanes.ids[slots[:, None], columns]
        hidden = mirror.draft(slots, ids)
        rows = torch.arange(len(slots))
        self.last[sent_one(self.last.device, slots)] = picked(hidden, rows, behind - 1).float()
        mirror.commit(slots, ids, behind, rows)
        self.context.charge(slots, forward=ids.shape[1])
