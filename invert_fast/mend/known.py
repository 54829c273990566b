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


@dataclass(frozen=True)
class Known:
    """ids `[T]`: the one text; lists `[T, C]`: what else may stand at each position, best first, −1 for none."""

    ids: Sequence[int]
    lists: Tensor
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
            return []
        self.offered = at
        return [Block(slots, self.known.lists[at : at + 1].to(slots.device))]
