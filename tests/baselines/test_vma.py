"""Each rule that makes VMA what was published is seen to be at work."""

from __future__ import annotations

import torch

from invert_fast.baselines import common, vma

from ..families import make, texts
from .runs import SMALL, by_rank, unreachable


def test_vma_runs_tokens_in_the_order_of_the_next_token_probability(small, log):
    found = vma.invert(small, unreachable(small, 2), batch_size=32)
    tried = log.tokens(small)
    assert tried[:SMALL] == list(range(SMALL)), "no prefix, no prediction: ids in order"
    logits = small(torch.tensor([found.token_ids[:1]])).logits[0, -1]
    assert tried[SMALL:] == by_rank(-logits)
    assert (found.iterations, found.tried, found.accepted) == ([4, 4], [SMALL, SMALL], [False, False])
    assert set(log.lengths) == {1}, "candidates share the prefix's keys and values"
    assert found.forward_tokens == 2 * SMALL + 1
    assert found.backward_tokens == 0


def test_vma_takes_the_best_of_v_by_l1_when_none_is_near(small):
    target = unreachable(small)
    found = vma.invert(small, target, batch_size=16)
    states = torch.cat([common.capture(small, [token]) for token in range(SMALL)])
    assert found.token_ids == [int((states - target).abs().sum(1).argmin())]


def test_vma_stops_at_the_first_batch_with_a_match_and_takes_its_best(small):
    row = [37, 5, 99]
    hidden = common.capture(small, row)
    found = vma.invert(small, hidden, batch_size=16)
    assert found.token_ids == row
    assert found.iterations[0] == 37 // 16 + 1
    logits = small(torch.tensor([row])).logits[0]
    ranks = [by_rank(-logits[t - 1]).index(row[t]) for t in (1, 2)]
    assert found.iterations[1:] == [rank // 16 + 1 for rank in ranks]
    lenient = vma.invert(small, hidden[:1], batch_size=50, epsilon=1e9)
    assert (lenient.token_ids, lenient.iterations) == ([37], [1]), "not the first under epsilon: the best of its batch"


def test_vma_keeps_to_the_window_of_a_model_that_has_one():
    model, row = make("mistral"), texts(9)[0]
    found = vma.invert(model, common.capture(model, row))
    assert found.token_ids == row
    assert all(found.accepted)
