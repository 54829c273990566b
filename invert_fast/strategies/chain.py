"""Strategies one after the other: what the first cannot find at a position goes to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.protocol import Behind, Block, Context, Learner, Observer, Proposer, Run, Strategy, Working, served


class Chain:
    """`Chain(a, b, …)`: each position starts with `a`; when that has nothing left to try there, `b` goes on."""

    def __init__(self, *strategies: Strategy, name: str = "chain"):
        if not strategies:
            raise ValueError("Chain of no strategies, expected at least one")
        self.strategies, self.name = strategies, name

    def bind(self, context: Context) -> _Proposer:
        """See `Strategy`."""
        return _Proposer([s.bind(context) for s in self.strategies], context)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.strategies))})"


class _Proposer:
    def __init__(self, proposers: list[Proposer], context: Context):
        self.proposers, self.context = proposers, context
        self.stage = torch.zeros(context.lanes.slots, dtype=torch.long)

    def begin(self, slots: Tensor) -> None:
        self.stage.index_fill_(0, slots, 0)
        for proposer in self.proposers:
            proposer.begin(slots)

    def observe(self, behind: Behind) -> None:
        for proposer in self.proposers:
            if isinstance(proposer, Observer):
                proposer.observe(behind)

    def finished(self, slots: Tensor, certified: Tensor) -> None:
        for proposer in self.proposers:
            if isinstance(proposer, Learner):
                proposer.finished(slots, certified)

    def ended(self) -> None:
        for proposer in self.proposers:
            if isinstance(proposer, Learner):
                proposer.ended()

    def propose(self, slots: Tensor) -> list[Run | Block | Working]:
        # a new position starts from the top
        self.stage[slots] = self.stage[slots].masked_fill(self.context.attempts.tries[slots] == 0, 0)
        items: list[Run | Block | Working] = []
        stages = self.stage[slots].tolist()
        for number, proposer in enumerate(self.proposers):
            rows = [row for row, stage in enumerate(stages) if stage == number]
            if not rows:
                continue
            asked = slots if len(rows) == len(stages) else slots[rows]
            part = proposer.propose(asked)
            unserved = ~served(part, asked)
            self.stage[asked] += unserved
            for row, moves_on in zip(rows, unserved.tolist(), strict=True):
                stages[row] += moves_on
            items += part
        return items
