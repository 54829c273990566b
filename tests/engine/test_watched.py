"""A strategy proposes. What the verdict rests on is not its to write, and what it proposes is looked at, whoever wrote
it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from invert_fast import Chain, Exhaustive, InputError, Inverter, Status
from invert_fast.engine.protocol import Block, Context, Proposer, Run, Working

from ..families import make, texts

Act = Callable[[Context, Tensor], Any]


@dataclass(frozen=True)
class Told:
    """A strategy that does what it is told once it is asked: `act(context, slots)`."""

    act: Act
    name: str = "told"

    def bind(self, context: Context) -> Proposer:
        return Doing(self.act, context)


class Doing:
    def __init__(self, act: Act, context: Context):
        self.act, self.context = act, context

    def begin(self, slots: Tensor) -> None:
        pass

    def propose(self, slots: Tensor) -> Any:
        return self.act(self.context, slots)


@pytest.fixture(scope="module")
def inverter() -> Inverter:
    return Inverter(make("gpt2"))


@pytest.fixture(scope="module")
def truth() -> list[list[int]]:
    return texts(4, 4)


WRONG = 7  # a token that stands in none of the texts


def wrong(slots: Tensor) -> Tensor:
    return torch.full((len(slots), 1), WRONG)


def test_wrong_proposals_are_not_certified(inverter, truth):
    def insist(context, slots):
        fresh = slots[context.attempts.tries[slots] == 0]
        return [Run(fresh, wrong(fresh), torch.ones_like(fresh))] if len(fresh) else []

    assert all(WRONG not in ids for ids in truth)
    for found in inverter.invert(inverter.capture(truth), Told(insist)):
        assert found.token_ids.tolist() == [WRONG] * 4
        assert not (found.status == Status.CERTIFIED).any()


def commit(context: Context, slots: Tensor) -> list[Block]:
    ids, one = wrong(slots), torch.ones_like(slots)
    context.lanes.draft(slots, ids)
    context.lanes.commit(slots, ids, one, torch.arange(len(slots)))
    return []


def rewrite_targets(context: Context, slots: Tensor) -> list[Block]:
    context.lanes.targets[slots, 0] = 0.0
    return []


def exchange_targets(context: Context, slots: Tensor) -> list[Block]:
    context.lanes.targets = context.lanes.targets + 1
    return []


def rewrite_residuals(context: Context, slots: Tensor) -> list[Block]:
    context.attempts.near[slots] = 0.0
    return []


def loosen(context: Context, slots: Tensor) -> list[Block]:
    context.tolerances = context.tolerances.at_noise((1.0, 1.0))
    return []


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (commit, r"wrote to lanes\.ids"),
        (rewrite_targets, r"wrote to lanes\.targets"),
        (exchange_targets, r"wrote to lanes\.targets"),
        (rewrite_residuals, r"wrote to attempts\.near"),
        (loosen, "something else into its context"),
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a chain"])
def test_what_a_verdict_rests_on_is_not_a_strategys_to_write(inverter, truth, act, said, inside):
    told = Told(act)
    with pytest.raises(InputError, match=f"strategy '{'chain' if inside else 'told'}' .*{said}"):
        Inverter.invert(inverter, inverter.capture(truth), Chain(told, Exhaustive()) if inside else told)


@pytest.mark.parametrize(
    ("propose", "said"),
    [
        (lambda c, s: [Block(s, torch.full((len(s), 2), c.vocabulary.size))], "a Block of ids 300 to 300, expected -1"),
        (lambda c, s: [Run(s, torch.full((len(s), 2), -1), torch.ones_like(s))], "a Run of ids -1 to -1, expected 0"),
        (lambda c, s: [Run(s, torch.zeros(len(s), 2).long(), torch.full_like(s, 9))], "a Run of counts .*has left"),
        (lambda c, s: [Block(s + 7, torch.zeros(len(s), 1).long())], r"for lanes \[7, 8\], expected some of \[0, 1\]"),
        (lambda c, s: [Working(s), Working(s[:1])], r"for lanes \[0, 1, 0\], expected each lane once"),
        (lambda c, s: [Block(s, torch.zeros(len(s), 1))], "torch.float32, expected int64"),
        (lambda c, s: ["a token"], "a str, expected a Run"),
    ],
)
def test_what_cannot_be_verified_is_refused(inverter, truth, propose, said):
    with pytest.raises(InputError, match=rf"strategy 'told' proposes .*{said}"):
        inverter.invert(inverter.capture(truth), Told(propose))


def test_what_is_no_strategy_is_refused(inverter, truth):
    with pytest.raises(InputError, match=r"the strategy is a int, expected an object with a `name` and `bind"):
        inverter.invert(inverter.capture(truth), 7)
