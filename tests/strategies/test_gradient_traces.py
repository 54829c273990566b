"""What a gradient search leaves behind: an honest failure, loss curves, proxies and ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from invert_fast import Chain, Inverter, PerStepProjection, Recovery, Status
from invert_fast.engine.trace import first_failure, true_ranks

from ..families import VOCAB, exact, inverter, texts
from .modes import QUICK, SIPIT


@pytest.mark.parametrize(
    "strategy",
    [replace(QUICK, steps=2, candidates=2), replace(SIPIT, max_steps=1, rest_block=None)],
    ids=["continuous", "sipit"],
)
def test_too_small_a_budget_fails_honestly_and_the_discrete_loss_says_where(strategy):
    """Many prompts, most of them wrong: never a certificate on a wrong token, and the detector knows every one."""
    wrong = right = 0
    for family in ("gpt2", "llama", "opt"):
        inv = inverter(family)
        truth = texts(*[1, 2, 3] * 14, seed=8)
        for ids, recovery in zip(truth, inv.invert(inv.capture(truth), strategy), strict=True):
            misses = np.flatnonzero(recovery.token_ids != ids)
            expected = int(misses[0]) if len(misses) else None
            assert recovery.first_failure == expected
            assert first_failure(recovery.discrete_loss) == expected
            assert not (recovery.status[misses] == Status.CERTIFIED).any()
            wrong, right = wrong + (expected is not None), right + (expected is None)
    assert wrong >= 20
    assert right >= 20, f"{wrong} wrong, {right} right"


# ---- observables


@pytest.fixture(scope="module")
def watched() -> tuple[Inverter, list[list[int]], list[Recovery]]:
    truth, inv = texts(4, 2, 3), inverter("gpt2")
    return inv, truth, inv.invert(inv.capture(truth), replace(QUICK, trace=True, trace_stride=7), batch_size=2)


def test_a_trace_has_the_loss_curve_and_the_proxies(watched):
    _, truth, found = watched
    for ids, recovery in zip(truth, found, strict=True):
        trace = recovery.trace
        assert trace is not None
        assert len(trace["positions"]) == len(ids)
        for position, steps, loss in zip(trace["positions"], recovery.steps, trace["loss"], strict=True):
            assert len(position.loss) == steps
            assert position.loss is loss
            assert position.proxy_steps.tolist() == [*range(0, steps, 7), steps]
            assert len(position.proxies) == len(position.proxy_steps)
            assert loss[-1] < loss[0]
        np.testing.assert_array_equal(trace["discrete_loss"], recovery.discrete_loss)
        np.testing.assert_allclose(trace["cumulative_loss"], recovery.cumulative_loss)
        assert trace["first_failure"] is None


def test_ranks_count_the_rows_strictly_nearer_to_the_proxy(watched):
    inv, truth, found = watched
    table = inv.decoder.embed(torch.arange(VOCAB))
    for ids, recovery in zip(truth, found, strict=True):
        trace = recovery.trace
        assert trace is not None
        for t, (position, ranks) in enumerate(zip(trace["positions"], trace["rank"], strict=True)):
            for proxy, rank in zip(torch.from_numpy(position.proxies), ranks, strict=True):
                distance = (table - proxy).abs().sum(-1)
                assert rank == int((distance < distance[ids[t]] - 1e-5).sum())
            assert trace["rank_at_commit"][t] == ranks[-1]
        for ours, theirs in zip(trace["rank"], true_ranks(trace, ids, table), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        other = true_ranks(trace, [(i + 1) % VOCAB for i in ids], table)
        assert any((a != b).any() for a, b in zip(trace["rank"], other, strict=True))


def test_without_being_asked_nothing_is_traced():
    inv = inverter("gpt2")
    (found,) = inv.invert(inv.capture(texts(2)), QUICK)
    assert found.trace is None


def test_positions_found_without_a_search_have_no_trace():
    truth, inv = texts(5, seed=2), inverter("gpt2")
    chain = Chain(replace(PerStepProjection.official(), max_steps=1, rest_block=None), replace(QUICK, trace=True))
    (found,) = inv.invert(inv.capture(truth), chain)
    assert found.trace is not None
    missing = [t for t, position in enumerate(found.trace["positions"]) if position is None]
    assert exact([found], truth)
    assert 0 < len(missing) < 5
    assert (found.trace["rank_at_commit"][missing] == -1).all()
