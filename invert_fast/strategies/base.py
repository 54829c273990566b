"""The protocol every strategy follows: it proposes, and the engine alone verifies, commits and records.

A strategy is a frozen dataclass of settings. `bind` makes the proposer that works on one engine's lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..attempts import Attempts, best_untried
from ..calibrate import Tolerances
from ..lanes import Lanes
from ..model import Decoder
from ..trace import Traces
from ..vocabulary import Vocabulary


@dataclass
class Context:
    """What a proposer may look at. states_dtype: precision that the states were stored in."""

    decoder: Decoder
    vocabulary: Vocabulary
    tolerances: Tolerances
    lanes: Lanes
    attempts: Attempts
    traces: Traces = field(default_factory=Traces)
    states_dtype: str = "float32"


@dataclass
class Run:
    """Tokens in a row, verified causally in one pass: slots `[b]`, ids `[b, K]`, of which counts `[b]` are meant."""

    slots: Tensor
    ids: Tensor
    counts: Tensor


@dataclass
class Block:
    """Alternatives for the next token: slots `[b]`, ids `[b, C]` best first, −1 for none."""

    slots: Tensor
    ids: Tensor


@dataclass
class Working:
    """Lanes `[b]` that are still searching: nothing to verify yet, and not exhausted either."""

    slots: Tensor


class Proposer(Protocol):
    def begin(self, slots: Tensor) -> None:
        """New texts stand in these lanes."""
        ...

    def propose(self, slots: Tensor) -> Sequence[Run | Block | Working]:
        """What to try next, each lane in at most one item; a lane in none has nothing left to try at its position."""
        ...


@dataclass
class Behind:
    """What a run showed behind its first mismatch: not proof of anything, since a token before was wrong, but evidence.

    slots, positions, ids `[n]`: the tokens; rows: index of each in hidden `[b, K, D]`, the states of the run;
    near `[n]` bool: the state came nearer to its target than another token's could, had all before been right.
    """

    slots: Tensor
    positions: Tensor
    ids: Tensor
    rows: tuple[Tensor, Tensor]
    hidden: Tensor
    near: Tensor


@runtime_checkable
class Observer(Protocol):
    """A proposer that wants to know what runs showed behind their first mismatches."""

    def observe(self, behind: Behind) -> None: ...


class Strategy(Protocol):
    @property
    def name(self) -> str: ...

    def bind(self, context: Context) -> Proposer: ...


def growing_blocks(
    context: Context, slots: Tensor, scores: Tensor, first: int, growth: int, largest: int
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
                items.append(Block(slots[group][some], ids[some]))
        if last:
            return items
        below, size = below + size, size * growth


def served(items: Sequence[Run | Block | Working], slots: Tensor) -> Tensor:
    """`[b]` bool: which of `slots` are in one of the items."""
    return torch.isin(slots, torch.cat([item.slots for item in items])) if items else torch.zeros_like(slots).bool()
