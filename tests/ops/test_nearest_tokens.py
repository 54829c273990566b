"""`nearest_tokens` finds the nearest rows in order, with ties and bans, on every backend that runs here."""

from __future__ import annotations

import pytest
import torch

from invert_fast import ops

from ..limits import share
from .distances import check, distances, roundings, sizes
from .inputs import METRICS, backends, random

pytestmark = pytest.mark.numeric
metrics = pytest.mark.parametrize("metric", METRICS)
nearest_backends = pytest.mark.parametrize("backend", backends("nearest_tokens"))


@nearest_backends
@metrics
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 64, 16, 8), (3, 37, 5, 37), (5, 100, 33, 1)], ids=str)
def test_it_finds_the_nearest_in_order(shape, metric, backend):
    B, V, D, count = shape
    queries, table = random(B, D), random(V, D, seed=1)
    values, ids = ops.nearest_tokens(queries, table, count, metric, backend=backend)
    assert (ids >= 0).all()
    assert values.shape == ids.shape == (B, count)
    check((values, ids), queries, table, metric)


@nearest_backends
@metrics
@pytest.mark.parametrize("count", [1, 5])
def test_ties_go_to_the_lower_id(metric, count, backend):
    table = random(12, 4, seed=1)[torch.tensor([0, 1, 2, 3] * 3)]  # ids 4 apart have equal rows
    _, ids = ops.nearest_tokens(table[:4].clone(), table, count, metric, backend=backend)
    every = distances(table[:4], table, metric)
    within = share(roundings(4, metric)) * sizes(table[:4], table, metric).amax(-1)
    for row, first in enumerate(ids[:, 0].tolist()):
        assert first < 4
        assert every[row, first] <= every[row].min() + within[row]
        assert ids[row].tolist()[:3] == [first, first + 4, first + 8][:count]


@nearest_backends
@metrics
@pytest.mark.parametrize("count", [1, 6])
def test_banned_rows_are_never_returned(metric, count, backend):
    queries, table = random(3, 8), random(20, 8, seed=1)
    banned = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    banned[2, 3:] = True  # leaves three
    banned[2, :3] = False
    values, ids = ops.nearest_tokens(queries, table, count, metric, banned, backend=backend)
    check((values, ids), queries, table, metric, banned)
    assert not banned.gather(1, ids.clamp_min(0))[ids >= 0].any()
    assert ids[2].tolist()[3:] == [-1] * max(0, count - 3)
    assert values[2, 3:].isinf().all()


@nearest_backends
def test_a_query_with_every_row_banned_finds_none(backend):
    values, ids = ops.nearest_tokens(random(1, 4), random(5, 4), 2, "l1", torch.ones(1, 5).bool(), backend=backend)
    assert ids.tolist() == [[-1, -1]]
    assert values.isinf().all()
