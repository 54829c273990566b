"""A chain goes on where a strategy gives up, and every strategy tries tokens in its own order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from invert_fast import Chain, Exhaustive, PriorOrder, Speculative
from invert_fast.engine.protocol import Block, Context, Run

from ..families import exact, inverter, texts
from .settings import MIXED


@dataclass(frozen=True)
class GivesUp:
    """Proposes nothing, or only the ids it was given, and leaves the rest to the next strategy."""

    ids: tuple[int, ...] = ()
    name: str = "gives up"

    def bind(self, context: Context) -> GivesUp.Proposer:
        return self.Proposer(self.ids, context)

    @dataclass
    class Proposer:
        ids: tuple[int, ...]
        context: Context

        def begin(self, slots: torch.Tensor) -> None: ...

        def propose(self, slots: torch.Tensor) -> list[Run | Block]:
            fresh = slots[self.context.attempts.tries[slots] == 0]
            if not self.ids or not len(fresh):
                return []
            return [Block(fresh, torch.tensor(self.ids).expand(len(fresh), -1))]


def test_a_chain_goes_on_where_its_first_strategy_gives_up():
    truth, inv = texts(*MIXED), inverter("llama")
    states = inv.capture(truth)
    assert exact(inv.invert(states, Chain(GivesUp(), Exhaustive())), truth)
    assert exact(
        inv.invert(states, Chain(GivesUp((7, 8, 9)), GivesUp(), PriorOrder(max_candidates=20), Exhaustive())), truth
    )


def test_a_strategy_that_gives_up_is_said_to_have_failed():
    truth, inv = texts(4, 1), inverter("llama")
    found = inv.invert(inv.capture(truth), GivesUp())
    assert [r.status.tolist() for r in found] == [[3, 4, 4, 4], [3]]
    with pytest.raises(ValueError, match="at least one"):
        Chain()


def test_the_rank_counts_the_candidates_tried_before():
    truth, inv = texts(9, seed=4), inverter("gpt2")
    states = inv.capture(truth)
    (found,) = inv.invert(states, Exhaustive(block=50))
    assert found.rank.tolist() == truth[0], "by ascending id, the rank is the id"
    (found,) = inv.invert(states, PriorOrder())
    order = inv.decoder.log_probs(inv.decoder.capture(torch.tensor(truth)))[0].argsort(-1, descending=True)
    assert found.rank.tolist()[1:] == [order[t - 1].tolist().index(truth[0][t]) for t in range(1, 9)]


def test_the_prior_of_an_inner_layer_is_that_of_the_whole_model():
    truth = texts(9, 14, seed=4)
    inner, outer = (inverter("gpt2", layer) for layer in ("block:0", -1))
    ranks = [[r.rank.tolist() for r in inv.invert(inv.capture(truth), "prior")] for inv in (inner, outer)]
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize(
    "strategy",
    [
        PriorOrder(4, growth=1),
        PriorOrder(first_block=999),
        Speculative(1, growth=1),
        Speculative(lens="linear"),
        Exhaustive(1),
    ],
    ids=repr,
)
def test_any_block_sizes_end(strategy, time_limit):
    truth, inv = texts(4, 1), inverter("llama")
    with time_limit(5):
        assert exact(inv.invert(inv.capture(truth), strategy), truth)
