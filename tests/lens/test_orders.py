"""In which order candidates are tried: several scores take turns, and each has the last word on some token."""

from __future__ import annotations

import pytest
import torch

from invert_fast.lens.orders import orders, ranked_ids, take_turns

C, TOKEN = 500, 123


def place_of(token: int, row, prior, change, weight: float) -> int:
    """How many candidates come before this one."""
    tables = orders(row[None], prior[None], change[None], torch.tensor([weight]))
    ids, turns = take_turns(*(ranked_ids(table, C) for table in tables))
    here = turns[ids == token].max()
    return int((turns > here).sum())


@pytest.mark.parametrize("weight", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("sure", ["prior", "row and prior", "change"])
def test_a_token_that_one_score_is_sure_of_comes_early(sure, weight):
    generator = torch.Generator().manual_seed(0)
    row, change = (20 * torch.randn(C, generator=generator) for _ in range(2))
    prior = torch.randn(C, generator=generator).mul_(3).log_softmax(-1)
    if sure == "prior":  # and the lens, which is blind to it, of all others
        row[TOKEN], change[TOKEN], prior[TOKEN] = row.min() - 1000, change.min() - 1000, 0.0
    elif sure == "row and prior":
        row[TOKEN], change[TOKEN], prior[TOKEN] = row.max() + 1, change.min() - 1000, 0.0
    else:
        row[TOKEN], change[TOKEN] = row.min() - 10, change.max() + 60
    assert place_of(TOKEN, row, prior, change, weight) < 6


def test_every_candidate_is_named_once_and_what_is_none_never():
    first, second = torch.tensor([[3, 1, 2, -1]]), torch.tensor([[1, 0, -1, -1]])
    ids, turns = take_turns(first, second)
    order = ids[0, turns[0].argsort(descending=True)].tolist()
    assert order[:4] == [3, 1, 0, 2]
    assert bool((turns[0].isinf() == (ids[0] < 0)).all())
    assert sorted(i for i in ids[0].tolist() if i >= 0) == [0, 1, 2, 3]


def test_what_scores_nothing_is_no_candidate():
    scores = torch.tensor([[1.0, float("-inf"), 3.0]])
    assert ranked_ids(scores, 3).tolist() == [[2, 0, -1]]
    assert ranked_ids(scores, 5, torch.tensor([[7, 8, 9]])).tolist() == [[9, 7, -1]]
