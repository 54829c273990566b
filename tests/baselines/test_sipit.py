"""Each rule that makes SIPIT what was published is seen to be at work."""

from __future__ import annotations

import itertools

import pytest
import torch

from invert_fast.baselines import common, sipit

from ..families import texts
from .runs import SMALL, by_rank, unreachable


def test_sipit_accepts_within_1e_5_and_nothing_else(small):
    row = texts(1, vocab=SMALL)[0]
    true = common.capture(small, row, prefix_by_prefix=True)
    near = sipit.invert(small, true + 0.9 * (1e-5 + 1e-5 * true.abs()))
    assert (near.token_ids, near.accepted) == (row, [True])
    for coordinate in (int(true.abs().argmin()), int(true.abs().argmax())):  # one is enough: where atol and rtol rule
        off = true.clone()
        off[0, coordinate] += 1.5 * (1e-5 + 1e-5 * off[0, coordinate].abs())
        far = sipit.invert(small, off)
        assert (far.accepted, far.iterations) == ([False], [SMALL])


def test_sipit_steps_projects_tries_and_bans(small, log):
    """The whole search, followed from the outside: each proxy is one step from the last, each candidate the nearest."""
    sipit.invert(small, unreachable(small))
    E, tried, banned = small.get_input_embeddings().weight, log.tokens(small), []
    assert torch.equal(log.proxies[0], E[int((E - log.proxies[0]).norm(dim=1).argmin())]), "starts from a token"
    assert sorted(tried) == list(range(SMALL)), "each token once: none was tried again after its ban"
    for iteration, (before, after) in enumerate(itertools.pairwise(log.proxies), start=1):
        if iteration % 50:
            assert (after - before).norm() <= 1 + 1e-4, "learning rate 1, gradient clipped to 1"
            order = by_rank((E - after).norm(dim=1))
            assert next(token for token in order if token not in banned) == tried[iteration - 1]
        banned.append(tried[iteration - 1])
    assert (log.proxies[1] - log.proxies[0]).norm() == pytest.approx(1, abs=1e-3), "a long gradient is cut to 1, not 0"


def test_sipit_snaps_to_the_token_just_tried_every_50_iterations(small, log):
    sipit.invert(small, unreachable(small))
    E, tried = small.get_input_embeddings().weight, log.tokens(small)
    on_a_row = [i for i, proxy in enumerate(log.proxies) if bool((proxy == E).all(1).any())]
    assert on_a_row == [0, 50, 100]
    assert all(torch.equal(log.proxies[i], E[tried[i - 1]]) for i in (50, 100))


def test_sipit_snaps_more_rarely_at_the_first_position_of_a_large_vocabulary():
    assert [sipit.snap_interval(0, v) for v in (4096, 24_999, 25_000, 50_257, 151_936)] == [50, 50, 100, 150, 350]
    assert {sipit.snap_interval(t, 151_936) for t in (1, 2, 99)} == {50}


def test_sipit_commits_silently_after_v_iterations(small, log):
    found = sipit.invert(small, unreachable(small, 2))
    assert found.iterations == found.tried == [SMALL, SMALL]
    assert found.accepted == [False, False]
    tried = log.tokens(small)
    assert found.token_ids == [tried[SMALL - 1], tried[-1]], "the last token tried"


def test_sipit_runs_the_whole_prefix_each_time(small, log):
    row = texts(4, vocab=SMALL)[0]
    hidden = common.capture(small, row, prefix_by_prefix=True)
    log.lengths.clear()
    found = sipit.invert(small, hidden)
    assert log.lengths == [t + 1 for t, steps in enumerate(found.iterations) for _ in range(2 * steps)]
    assert found.forward_tokens == sum(log.lengths) == 2 * found.backward_tokens


def test_sipit_learning_rate_falls_when_asked(small, log):
    sipit.invert(small, unreachable(small), linear_lr=True)
    steps = torch.stack([(b - a).norm() for a, b in itertools.pairwise(log.proxies)])
    limit = 1 - 0.99 * torch.arange(len(steps)) / SMALL
    away = torch.arange(1, len(steps) + 1) % 50 != 0
    assert bool((steps[away] <= limit[away] + 1e-4).all())
    assert bool((steps[away] > 0.99 * limit[away]).sum() > len(steps) // 2), "clipped steps are as long as the rate"
