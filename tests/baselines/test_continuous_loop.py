"""Each rule that makes the continuous loop what was published is seen to be at work."""

from __future__ import annotations

import itertools

import pytest
import torch

from invert_fast.baselines import common, continuous_loop

from ..families import texts
from .runs import SMALL, by_rank, unreachable


def test_loop_presets_are_table_1():
    presets = {name: (p.steps, p.candidates) for name, p in continuous_loop.PRESETS.items()}
    assert presets == {"fast": (600, 100), "baseline": (1000, 2000), "high-accuracy": (2000, 10_000)}
    assert {(p.loss_threshold, p.discrete_threshold) for p in continuous_loop.PRESETS.values()} == {(1e-4, 1e-4)}


def test_loop_leaves_at_the_threshold_one_step_after_the_loss_that_met_it(small, log):
    target, watched = common.capture(small, texts(1, vocab=SMALL)[0]), common.WatchedModel(small)

    def losses(threshold: float) -> list[float]:
        log.proxies.clear()
        found = continuous_loop.invert(small, target, preset=continuous_loop.Preset(30, 1, loss_threshold=threshold))
        proxies = list(log.proxies)
        assert found.iterations == [len(proxies)]
        with torch.no_grad():
            return [
                float((watched.last_state(proxy[None][:0], proxy) - target[0]).square().mean()) for proxy in proxies
            ]

    all_of_them = losses(0.0)
    assert len(all_of_them) == 30
    threshold = sorted(all_of_them)[15]
    until = losses(threshold)
    assert 1 < len(until) < 30
    assert until[-1] < threshold <= min(until[:-1])
    assert len(losses(1e9)) == 1


def test_loop_starts_from_zeros_and_cools_down(small, log):
    steps = 40
    continuous_loop.invert(small, unreachable(small), preset=continuous_loop.Preset(steps, 1))
    assert not log.proxies[0].any()
    longest = [float((b - a).abs().max()) for a, b in itertools.pairwise(log.proxies)]
    assert longest[0] == pytest.approx(0.05, rel=1e-3), "Adam's first step is the learning rate"
    assert longest[-1] < 0.05 * 0.05, "the cosine is nearly 0 by then"
    log.proxies.clear()
    continuous_loop.invert(small, unreachable(small), preset=continuous_loop.Preset(1, 1), init="token")
    assert bool((small.get_input_embeddings().weight == log.proxies[0]).all(1).any())
    with pytest.raises(ValueError, match="zeros"):
        continuous_loop.invert(small, unreachable(small), init="ones")


def test_loop_tries_the_c_nearest_by_l1_and_falls_back_on_the_nearest(small, log, monkeypatch):
    final, nearest = [], continuous_loop.nearest_tokens
    monkeypatch.setattr(
        continuous_loop, "nearest_tokens", lambda E, proxy, count: final.append(proxy) or nearest(E, proxy, count)
    )
    found = continuous_loop.invert(small, unreachable(small, 2), preset=continuous_loop.Preset(5, 9))
    E, tried = small.get_input_embeddings().weight, log.tokens(small)
    for t, proxy in enumerate(final):
        assert tried[9 * t : 9 * t + 9] == by_rank((E - proxy).abs().sum(1))[:9]
    assert found.token_ids == [tried[0], tried[9]]
    assert (found.tried, found.accepted) == ([9, 9], [False, False])
    assert len(final) == 2, "one discrete search a position"


def test_loop_measures_candidates_by_l1_not_l2():
    E = torch.tensor([[3.0, 0.0, 0.0], [1.2, 1.2, 1.2]])
    assert continuous_loop.nearest_tokens(E, torch.zeros(3), 10) == [0, 1]


def test_loop_commits_the_first_candidate_under_the_threshold(small):
    target = common.capture(small, texts(1, vocab=SMALL)[0])
    # from a few steps only, the right token is not the nearest: it must be reached past wrong ones
    short = continuous_loop.Preset(3, SMALL)
    found = continuous_loop.invert(small, target, preset=short)
    assert found.token_ids == texts(1, vocab=SMALL)[0]
    assert found.accepted == [True]
    assert 1 < found.tried[0] < SMALL
    lenient = continuous_loop.invert(small, target, preset=continuous_loop.Preset(3, SMALL, discrete_threshold=1e9))
    assert (lenient.tried, lenient.accepted) == ([1], [True])


def test_loop_runs_the_whole_prefix_each_time(small, log):
    found = continuous_loop.invert(small, unreachable(small, 3), preset=continuous_loop.Preset(4, 2))
    assert log.lengths == [t + 1 for t in range(3) for _ in range(4 + 2)]
    assert found.forward_tokens == sum(log.lengths)
    assert found.backward_tokens == 4 * (1 + 2 + 3)
