"""Positions that fit but may not be alone: committed, their rivals tried beside one another, taken back if one wins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from invert_fast import Exhaustive, Inverter, States, Status
from invert_fast.engine import rivals
from invert_fast.engine.attempts import Attempts
from invert_fast.engine.tolerances import At
from invert_fast.engine.verdict import Judge
from invert_fast.model.decoder import capture
from invert_fast.model.numerics import model_in
from invert_fast.model.own_lanes import lanes_of
from invert_fast.model.vocabulary import RIVALS_MOST

from ..adversary import Draft, drafted, judge
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

    monkeypatch.setattr(At, "loudness", lambda self, residual: torch.zeros_like(residual))  # all are committed first
    monkeypatch.setattr(type(inv.vocabulary), "rivals", none_found)
    drafts = [[t ^ 1 if j % 3 == 1 else t for j, t in enumerate(row)] for row in truth]
    found = inv.invert(states, drafted(*drafts))
    for row, recovery in zip(truth, found, strict=True):
        for t in (recovery.status == Status.CERTIFIED).nonzero()[0].tolist():
            assert recovery.token_ids[t] == row[t]


def test_a_loud_token_does_not_have_all_its_rivals_tried_before_others():
    """Where the ceiling of noise lies above wrong tokens' residuals, these fit: others come first."""
    inv, truth = Inverter(build("llama")), texts(*[10] * 12, seed=7)
    states = coarse_states(inv, truth)
    measured = inv.calibrate("bfloat16", "bfloat16")
    deaf = replace(measured, tolerance=(2.0, 2.0))
    drafts = [[(t + 97) % 300 if j % 3 == 1 else t for j, t in enumerate(row)] for row in truth]
    for tolerances in (measured, deaf):
        found = inv.invert(states, drafted(*drafts), tolerances=tolerances)
        assert [r.token_ids.tolist() for r in found] == truth
        assert all(r.certified for r in found)
        assert sum(r.cost.rivals for r in found) <= 4 * 120


def test_a_loud_token_has_its_rivals_tried_once_nothing_else_is_left(monkeypatch):
    """A strategy that tries few tokens must not leave what is loud and right without a certificate."""
    inv, truth = with_twins(0.1), texts(*[10] * 12, vocab=40, seed=8)
    states = coarse_states(inv, truth)
    monkeypatch.setattr(At, "loudness", lambda self, residual: torch.full_like(residual, 2.0))
    for row, state, recovery in zip(truth, states, inv.invert(states, Draft(truth)), strict=True):
        judge(inv, state, recovery, row, sure=False)
        assert recovery.token_ids.tolist() == row
        assert (recovery.status == Status.CERTIFIED).sum() >= 5
        assert recovery.cost.rivals > 0


def test_a_position_that_is_lost_has_no_more_rivals_tried():
    """One that is nearer is enough; the winner's own are tried in its turn."""
    inv, truth = with_twins(0.1), texts(*[10] * 24, vocab=40, seed=3)
    states = coarse_states(inv, truth)
    slots = torch.arange(24)
    draft = torch.tensor([[t ^ 1 if j == 4 else t for j, t in enumerate(row)] for row in truth])
    # by which every token is in question
    tolerances = replace(inv.calibrate("bfloat16", "bfloat16"), slope=(1e-6, 1e-6), within=(9.0, 9.0))
    lanes = lanes_of(inv.decoder, 24, 10)
    lanes.load(slots, [*range(24)], [state.hidden.float() for state in states])
    hidden = lanes.draft(slots, draft)
    lanes.commit(slots, draft, torch.full((24,), 10), slots, keep=torch.ones(24, dtype=torch.bool))
    at = torch.full((24,), 4)
    own = tolerances.row_residuals(hidden, lanes.targets, torch.arange(10).expand(24, -1))[1][:, 4]
    attempts = Attempts(24, inv.vocabulary.size, inv.decoder.width, inv.decoder.device)
    found = rivals.try_rivals(Judge(lanes, attempts, inv.vocabulary, tolerances), slots, at, own, 1 << 20)
    assert found.lost.all()
    tried = (found.ids >= 0).sum(-1)
    assert int(tried.max()) <= 8
