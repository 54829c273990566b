"""Positions that fit but may not be alone: committed, their rivals tried beside one another, taken back if one wins."""

from __future__ import annotations

import pytest
import torch

from invert_fast import Exhaustive, Inverter, States, Status
from invert_fast.engine import rivals
from invert_fast.model.decoder import capture
from invert_fast.model.numerics import model_in
from invert_fast.model.vocabulary import RIVALS_MOST

from ..adversary import drafted, judge
from ..families import build, embedding_table, make, texts

pytestmark = pytest.mark.numeric


def coarse_states(inv: Inverter, truth: list[list[int]]) -> list[States]:
    """As a bf16 pass makes them."""
    model = model_in(inv.decoder.model, "bfloat16")
    return [States(capture(model, inv.decoder.layer, torch.tensor([row]))[0], -1) for row in truth]


def with_twins(relative: float, pairs: int = 20) -> Inverter:
    """Rows 2k + 1 are those of 2k, but for so much of their length."""
    model = build("llama")
    table = embedding_table(model)
    generator = torch.Generator().manual_seed(0)
    for k in range(pairs):
        way = torch.randn(table.shape[1], generator=generator)
        table[2 * k + 1] = table[2 * k] + relative * table[2 * k].norm() * way / way.norm()
    return Inverter(model)


@pytest.mark.parametrize("relative", [0.3, 0.1, 0.03, 0.01, 1e-3, 1e-5])
def test_a_drafted_twin_is_never_certified(relative):
    """The draft is wrong by a twin here and there: where the noise is louder than the difference both are named."""
    inv, truth = with_twins(relative), texts(*[10] * 24, vocab=40, seed=3)
    draft = [[t ^ 1 if (i + j) % 3 == 0 else t for j, t in enumerate(row)] for i, row in enumerate(truth)]
    states = coarse_states(inv, truth)
    found = inv.invert(states, drafted(*draft))
    for state, row, recovery in zip(states, truth, found, strict=True):
        judge(inv, state, recovery, row, sure=False)
        for t in (recovery.status == Status.AMBIGUOUS).nonzero()[0].tolist():
            assert row[t] in {int(recovery.token_ids[t]), *recovery.alternatives[t]}
    certified = sum(int((r.status == Status.CERTIFIED).sum()) for r in found)
    if relative >= 0.3:
        assert certified == 240
    if relative <= 1e-3:
        assert certified == 0


def test_what_is_behind_a_lost_position_is_judged_again():
    """Everything after a twin was verified behind the wrong one: nothing of that may be left."""
    inv, (row,) = with_twins(0.1), texts(12, vocab=40, seed=5)
    states = coarse_states(inv, [row])
    draft = list(row)
    draft[4] ^= 1
    (wrong,), (right,) = inv.invert(states, drafted(draft)), inv.invert(states, drafted(row))
    assert wrong.token_ids.tolist() == right.token_ids.tolist() == row
    assert wrong.status.tolist() == right.status.tolist()
    torch.testing.assert_close(torch.tensor(wrong.residual), torch.tensor(right.residual), rtol=1e-3, atol=1e-5)
    assert wrong.cost.forward_tokens > right.cost.forward_tokens


@pytest.mark.parametrize("budget", [1, 7, 64])
def test_rivals_are_tried_within_the_tokens_a_call_may_have(budget, monkeypatch):
    inv, truth = with_twins(0.1), texts(*[10] * 6, vocab=40, seed=4)
    states = coarse_states(inv, truth)
    whole = inv.invert(states, drafted(*truth))
    monkeypatch.setattr("invert_fast.inverter.plan", lambda *a: type("P", (), {"slots": 6, "tokens_per_call": budget}))
    for a, b in zip(inv.invert(states, drafted(*truth)), whole, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.status.tolist() == b.status.tolist()


def test_running_out_of_memory_among_rivals_leaves_nothing_unproved(monkeypatch):
    inv, truth = with_twins(0.1), texts(*[10] * 6, vocab=40, seed=4)
    states, draft = coarse_states(inv, truth), [[t ^ 1 for t in row] for row in texts(*[10] * 6, vocab=40, seed=4)]
    whole, calls = inv.invert(states, drafted(*draft)), []
    tried = rivals._residuals

    def out_of_memory_at_first(*args):
        calls.append(args)
        if len(calls) <= 2:
            raise torch.OutOfMemoryError("out of memory")
        return tried(*args)

    monkeypatch.setattr(rivals, "_residuals", out_of_memory_at_first)
    found = inv.invert(states, drafted(*draft))
    assert len(calls) > 2
    for a, b in zip(found, whole, strict=True):
        assert (a.token_ids.tolist(), a.status.tolist()) == (b.token_ids.tolist(), b.status.tolist())


def test_a_token_of_very_many_rivals_is_ambiguous_at_a_stated_cost():
    model = build("llama", vocab=700)
    table, generator = embedding_table(model), torch.Generator().manual_seed(0)
    table[:600] = table[0] + 1e-3 * table[0].norm() * torch.randn(600, 64, generator=generator) / 8
    inv = Inverter(model)
    truth = [[650, 5, 660]]
    (found,) = inv.invert(coarse_states(inv, truth), drafted(*truth))
    assert found.status.tolist() == [Status.CERTIFIED, Status.AMBIGUOUS, Status.CERTIFIED]
    assert found.alternatives[1]
    assert found.cost.rivals <= 3 * RIVALS_MOST + 64
    assert found.error_bound[[0, 2]].max() <= 1.01e-9
    assert found.error_bound[1] == 1.0


@pytest.mark.parametrize("strategy", ["auto", "prior", "sipit", Exhaustive()])
def test_the_parts_of_the_cost_are_all_of_it(strategy):
    inv, truth = Inverter(make("gpt2")), texts(6, 3)
    for recovery in inv.invert(coarse_states(inv, truth), strategy):
        cost = recovery.cost
        assert cost.draft + cost.repair + cost.rivals + cost.exhaustive == cost.forward_tokens > 0
        if isinstance(strategy, Exhaustive):
            assert cost.exhaustive >= 3 * 300


def test_a_rival_that_won_is_not_forgotten(monkeypatch):
    """Whatever the second look for rivals finds: what is known to be nearer than the draft must not lose to it."""
    inv, truth = with_twins(0.1), texts(*[10] * 12, vocab=40, seed=6)
    states = coarse_states(inv, truth)

    def none_found(self, tokens, radius, tried, count):
        return tokens.new_full((len(tokens), count), -1), torch.zeros_like(tokens).bool()

    monkeypatch.setattr(type(inv.vocabulary), "rivals", none_found)
    drafts = [[t ^ 1 if j % 3 == 1 else t for j, t in enumerate(row)] for row in truth]
    found = inv.invert(states, drafted(*drafts))
    for row, recovery in zip(truth, found, strict=True):
        for t in (recovery.status == Status.CERTIFIED).nonzero()[0].tolist():
            assert recovery.token_ids[t] == row[t]
