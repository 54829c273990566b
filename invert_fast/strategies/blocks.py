"""Blocks of the best candidates that a position has not tried: what strategies that score the vocabulary share."""

from __future__ import annotations

from torch import Tensor

from ..engine.protocol import Block, Context


def growing_blocks(
    context: Context, slots: Tensor, scores: Tensor, first: int, growth: int, largest: int, part: str = "repair"
) -> list[Block]:
    """Blocks of the best untried tokens by `scores [b, V]`: the more a lane has tried there, the more at once."""
    tries, items = context.attempts.tries[slots], []
    size, below = first, 0
    while True:
        last = size >= largest or growth <= 1
        group = (tries >= below) if last else (tries >= below) & (tries < below + size)
        if bool(group.any()):
            ids = best_untried(
                scores[group], context.attempts.tried[slots[group]], context.vocabulary.allowed, min(size, largest)
            )
            some = ids[:, 0] >= 0
            if bool(some.any()):
                items.append(Block(slots[group][some], ids[some], part))
        if last:
            return items
        below, size = below + size, size * growth


def best_untried(scores: Tensor, tried: Tensor, allowed: Tensor, count: int) -> Tensor:
    """The `count` best-scored candidates that are allowed and untried: `[b, V] → [b, count]`, −1 where none is left."""
    scores = scores.masked_fill(tried | ~allowed, float("-inf"))
    values, ids = scores.topk(min(count, scores.shape[1]), dim=-1)
    return ids.masked_fill(values == float("-inf"), -1)
