"""The protocol every strategy follows: it proposes, and the engine alone verifies, commits and records.

A strategy is a frozen dataclass of settings. `bind` makes the proposer that works on one engine's lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.lanes import Lanes
from ..model.vocabulary import Vocabulary
from .attempts import Attempts
from .posteriors import Posteriors
from .tolerances import Tolerances
from .trace import Traces


@dataclass
class Context:
    """What a proposer may look at. It changes nothing of it but by `charge`, and says what it believes to `posteriors`.
    states_dtype: precision that the states were stored in."""

    decoder: Decoder
    vocabulary: Vocabulary
    tolerances: Tolerances
    lanes: Lanes
    attempts: Attempts
    traces: Traces = field(default_factory=Traces)
    states_dtype: str = "float32"
    posteriors: Posteriors = field(default_factory=Posteriors)

    def charge(self, slots: Tensor, *, forward: int = 0, backward: int = 0, steps: int | Tensor = 0) -> None:
        """Note what was computed for the lanes `slots [b]` beyond calls of `lanes`, which charge themselves: tokens a
        lane through the model, forwards and backwards, and optimisation steps (one number, or `[b]`)."""
        self.lanes.charge(slots, forward, backward)
        self.attempts.steps[slots] += steps


@dataclass
class Run:
    """Tokens in a row, verified causally in one pass: slots `[b]`, ids `[b, K]`, of which counts `[b]` are meant.
    final: nothing better will be proposed where one does not fit, so that it stands, by its honest name."""

    slots: Tensor
    ids: Tensor
    counts: Tensor
    final: bool = False


@dataclass
class Block:
    """Alternatives for the next token: slots `[b]`, ids `[b, C]` best first, −1 for none; part: of the cost, see
    `Cost`."""

    slots: Tensor
    ids: Tensor
    part: str = "repair"


@dataclass
class Working:
    """Lanes `[b]` that are still searching: nothing to verify yet, and not exhausted either."""

    slots: Tensor


class Proposer(Protocol):
    """What a strategy is on the lanes of one engine. It reads its `Context`, keeps tables of its own, and proposes;
    what it proposes is verified, and whatever is left of a position is asked for again."""

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

    def observe(self, behind: Behind) -> None:
        """A run of some lanes stopped at a mismatch. Told once a run."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A proposer that learns from what was recovered."""

    def finished(self, slots: Tensor, certified: Tensor) -> None:
        """The texts in these lanes are complete, and still there; certified `[b, M]`: which of their tokens are."""
        ...

    def ended(self) -> None:
        """No more texts come."""
        ...


class Strategy(Protocol):
    """How candidates are found: settings, which may serve any number of inversions, side by side too."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    def bind(self, context: Context) -> Proposer:
        """The proposer that works on the lanes of this engine, which it may look at."""
        ...


def served(items: Sequence[Run | Block | Working], slots: Tensor) -> Tensor:
    """`[b]` bool: which of `slots` are in one of the items."""
    return torch.isin(slots, torch.cat([item.slots for item in items])) if items else torch.zeros_like(slots).bool()
