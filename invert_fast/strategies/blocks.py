"""Blocks of the best candidates that a position has not tried: what strategies that score the vocabulary share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.protocol import Block, Context
from ..model.transfer import sent_one, told_one


@dataclass(frozen=True)
class Ranked:
    """Candidates of n positions and their scores `[n, C]`, beside the model; ids `[n, C]`, −1 for none, or None: all
    tokens in order."""

    scores: Tensor
    ids: Tensor | None = None

    def token(self, column: Tensor) -> Tensor:
        """The tokens in these columns `[n, k]`."""
        return column if self.ids is None else self.ids.gather(1, column).long()

    def allowed(self, context: Context) -> Ranked:
        """What is no candidate scores −∞."""
        banned = ~context.vocabulary.allowed if self.ids is None else self.ids < 0
        return Ranked(self.scores.masked_fill(banned, float("-inf")), self.ids)

    def untried(self, context: Context, slots: Tensor) -> Ranked:
        """So does what was tried at the positions of these lanes."""
        tried, slots = context.attempts.tried_there, sent_one(self.scores.device, slots)
        banned = tried[slots] if self.ids is None else tried[slots[:, None], self.ids.clamp_min(0).long()]
        found = self.allowed(context)
        return Ranked(found.scores.masked_fill_(banned, float("-inf")), self.ids)

    def __getitem__(self, rows: Tensor | slice) -> Ranked:
        """Of these positions, `[m]` or a mask on the host."""
        if isinstance(rows, Tensor):
            rows = sent_one(self.scores.device, rows.nonzero().flatten() if rows.dtype == torch.bool else rows)
        return Ranked(self.scores[rows], None if self.ids is None else self.ids[rows])


def growing_blocks(
    context: Context,
    slots: Tensor,
    scores: Tensor | Ranked,
    first: int,
    growth: int,
    largest: int,
    part: str = "repair",
) -> list[Block]:
    """Blocks of the best untried tokens by `scores [b, V]`, or of the candidates that were ranked: the more a lane has
    tried there, the more at once."""
    ranked = scores if isinstance(scores, Ranked) else Ranked(scores)
    tries, items = context.attempts.tries[slots], []
    size, below = first, 0
    while True:
        last = size >= largest or growth <= 1
        group = (tries >= below) if last else (tries >= below) & (tries < below + size)
        if bool(group.any()):
            ids = told_one(best_of(ranked[group].untried(context, slots[group]), min(size, largest)))
            some = ids[:, 0] >= 0
            if bool(some.any()):
                items.append(Block(slots[group][some], ids[some], part))
        if last:
            return items
        below, size = below + size, size * growth


def together(blocks: list[Block], call_tokens: float) -> list[Block]:
    """The same as fewer blocks, each filled up to its longest row, where that computes less in vain than a call of its
    own costs."""
    left, found = sorted(blocks, key=lambda block: block.ids.shape[1]), list[Block]()
    while left:
        widest, vain = left.pop(), 0
        width, alike = widest.ids.shape[1], [widest]
        while left and left[-1].part == widest.part:
            vain += (width - left[-1].ids.shape[1]) * len(left[-1].slots)
            if vain > call_tokens * len(alike):
                break
            alike.append(left.pop())
        ids = [F.pad(block.ids, (0, width - block.ids.shape[1]), value=-1) for block in alike]
        found.append(Block(torch.cat([block.slots for block in alike]), torch.cat(ids), widest.part))
    return found


def best_of(ranked: Ranked, count: int) -> Tensor:
    """The `count` best-scored candidates, `[b, count]`, −1 where none is left."""
    values, columns = ranked.scores.topk(min(count, ranked.scores.shape[1]), dim=-1)
    return ranked.token(columns).masked_fill(values == float("-inf"), -1)
