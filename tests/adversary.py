"""The judge of what is certified, independent of the engine, and the worst that a strategy may propose to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from invert_fast import Chain, Exhaustive, Inverter, Recovery, States, Status
from invert_fast.engine.protocol import Block, Context, Run, Strategy

SMALL = {"vocab": 60, "width": 32, "blocks": 2}
some_families = pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma"])
CERTIFIED, BEST, AMBIGUOUS, MISSING, AFTER = Status


def all_residuals(inv: Inverter, prefix: Sequence[int], target: Tensor) -> Tensor:
    """Relative distance to `target [D]` of every token after `prefix`, by the model's own forward pass: `[V]`."""
    size = inv.vocabulary.size
    ids = torch.cat([torch.tensor(list(prefix), dtype=torch.long).expand(size, -1), torch.arange(size)[:, None]], 1)
    states = inv.decoder.capture(ids)[:, -1].float()
    return (states - target.float()).norm(dim=-1) / target.float().norm().clamp_min(1e-30)


def judge(
    inv: Inverter, states: States | Tensor, found: Recovery, truth: Sequence[int] | None = None, sure=True
) -> None:
    """What is certified must be the one token whose state is nearest, and that of `truth` where it is known; with
    `sure`, every other token must be further away by more than any noise."""
    states = states if isinstance(states, States) else States(states)
    hidden = states.hidden
    coarse = states.precision() != ("float32", "float32")  # then margins are measured in the metric of the noise
    assert len(found.token_ids) == len(found.status) == len(hidden)
    assert (found.token_ids < inv.decoder.usable_ids).all()
    for t in np.flatnonzero(found.status == CERTIFIED).tolist():
        token = int(found.token_ids[t])
        if truth is not None:
            assert token == truth[t], f"position {t}: certified {token}, the truth is {truth[t]}"
        residuals = all_residuals(inv, found.token_ids[:t].tolist(), hidden[t])[: inv.decoder.usable_ids]
        assert residuals.argmin() == token, f"position {t}: another token than {token} is nearer"
        if sure:
            assert (residuals < residuals[token] + 1e-5).sum() == 1, f"position {t}: {token} is not alone"
            assert coarse or found.margin[t] <= residuals.sort().values[1] - residuals[token] + 1e-5
    for t in np.flatnonzero(found.status == AMBIGUOUS).tolist():
        assert found.alternatives[t], "ambiguous between what?"
        assert int(found.token_ids[t]) not in found.alternatives[t]
    if MISSING in found.status:
        first = int(np.flatnonzero(found.status == MISSING)[0])
        assert (found.status[first + 1 :] == AFTER).all()
        assert AFTER not in found.status[:first]
    else:
        assert AFTER not in found.status


@dataclass(frozen=True)
class Draft:
    """Drafts the ids it was given, right or wrong: the worst lens there can be."""

    ids: Sequence[Sequence[int]]
    name: str = "draft"

    def bind(self, context: Context) -> Draft.Proposer:
        return self.Proposer(self.ids, context)

    @dataclass
    class Proposer:
        ids: Sequence[Sequence[int]]
        context: Context

        def begin(self, slots: Tensor) -> None: ...

        def propose(self, slots: Tensor) -> list[Run | Block]:
            lanes, items = self.context.lanes, []
            for slot in slots[self.context.attempts.tries[slots] == 0].tolist():
                row = torch.tensor([self.ids[int(lanes.text[slot])][int(lanes.length[slot]) :]])
                items.append(Run(torch.tensor([slot]), row, torch.tensor([row.shape[1]])))
            return items


def drafted(*drafts: Sequence[int]) -> Strategy:
    """These drafts, then every token: what a strategy may do at its worst."""
    return Chain(Draft(drafts), Exhaustive(block=16))


def rounded(states: list[States], dtype: str) -> list[States]:
    return [States(s.hidden.to(getattr(torch, dtype)), s.layer, dtype, "float32", s.model) for s in states]


def unit(table: Tensor, generator: torch.Generator) -> Tensor:
    way = torch.randn(table.shape[1], generator=generator)
    return way / way.norm()
