"""What is particular to the other Triton kernels: tiles, programs and storage types.

They run in Triton's interpreter or, with TRITON_INTERPRET=0, on a GPU. The common tests of the ops run them too.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from invert_fast.kernels import reference

from .adam import check as check_adam
from .distances import check as check_nearest
from .inputs import DTYPES, METRICS, TRITON_DEVICE, random
from .residuals import check as check_residuals
from .scores import check as check_best_two

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux)")

from invert_fast.kernels import adam_triton, best_two_triton, nearest_triton, residuals_triton

pytestmark = pytest.mark.numeric
rows = partial(random, device=TRITON_DEVICE)


TILES = [(1, 256, 128, 1), (3, 130, 33, 1), (18, 65, 40, 2), (2, 300, 32, 299), (4, 1200, 32, 5), (1, 63, 130, 3)]


@pytest.mark.parametrize(
    ("B", "V", "D", "count", "metric", "dtype"),
    [  # what is loaded and how it is compared do not meet: every shape and every metric has every type
        (*shape, metric, DTYPES[(i + j) % len(DTYPES)])
        for i, shape in enumerate(TILES)
        for j, metric in enumerate(METRICS)
    ],
    ids=str,
)
def test_nearest_tokens_at_even_and_ragged_tiles(B, V, D, count, metric, dtype):
    queries, table = rows(B, D + 2)[:, 1:-1], rows(V, D + 1, seed=1, dtype=dtype)[:, :-1]
    banned = (rows(B, V + 1, seed=2) > 1)[:, 1:]
    values, ids = nearest_triton.nearest_tokens(queries, table, count, metric, banned)
    check_nearest((values, ids), queries, table, metric, banned)
    assert not banned.gather(1, ids.clamp_min(0))[ids >= 0].any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("B", "V", "D", "count"), [(1, 4096, 64, 33), (24, 256, 64, 3), (130, 160, 64, 1)])
def test_nearest_tokens_where_sizes_are_even_and_rows_aligned(B, V, D, count, metric):
    queries, table = rows(B, D), rows(V, D, seed=1)
    check_nearest(nearest_triton.nearest_tokens(queries, table, count, metric), queries, table, metric)


def best_two_is_right(n: int, V: int, K: int, dtype: torch.dtype) -> None:
    """Tokens far from the origin, all in one direction: what fp16 would drown in, were their mean not taken off."""
    x, matrix, bias = rows(n, K + 1)[:, 1:], rows(V, K, seed=1, dtype=dtype) + 100, rows(V, seed=2)
    bias[::3] = -torch.inf
    found = best_two_triton.best_two(x, matrix, bias)
    scores = (x.double() @ matrix.double().T + bias.double()).cpu()
    check_best_two(tuple(t.cpu() for t in found), x.cpu(), matrix.float().cpu(), bias.cpu(), scores)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "V", "K", "groups"),
    [(1, 1300, 16, 4), (5, 3, 33, 256), (17, 40, 130, 256), (70, 700, 64, 256), (140, 257, 40, 256)],
    ids=str,
)
def test_best_two_at_every_tile(n, V, K, groups, dtype, monkeypatch):
    monkeypatch.setattr(best_two_triton, "_GROUPS", groups)  # of few, a small vocabulary has several tiles each
    best_two_is_right(n, V, K, dtype)


@pytest.mark.slow
def test_best_two_of_more_tokens_than_groups_of_one_tile_hold():
    best_two_is_right(1, 33000, 16, torch.float32)


@pytest.mark.parametrize(("n", "V", "K", "count"), [(3, 40, 16, 2), (20, 3000, 33, 64)], ids=str)
def test_a_short_list_has_the_best_and_its_scores_in_full(n, V, K, count):
    """Two of each group of tokens."""
    x, matrix, bias = rows(n, K), rows(V, K, seed=1), rows(V, seed=2)
    bias[::3] = -torch.inf
    ids, found = best_two_triton.shortlist(x, matrix, bias, best_two_triton.coarse(matrix), 64)
    every = x @ matrix.T + bias
    assert (ids >= 0).sum(-1).eq(count).all()
    there = ids >= 0
    torch.testing.assert_close(found[there], every.gather(1, ids.clamp_min(0))[there], rtol=1e-4, atol=1e-4)
    assert (found[:, 1:] <= found[:, :-1]).all()
    torch.testing.assert_close(found[:, 0], every.amax(-1), rtol=1e-4, atol=1e-4)
    assert ids[~there].eq(-1).all()
    assert found[~there].eq(-torch.inf).all()


def test_rows_of_a_table_that_are_not_numbers_are_never_the_best():
    x, matrix, bias = rows(9, 40), rows(300, 40, seed=1), rows(300, seed=2)
    matrix[7:200, 3] = torch.nan
    ids, leads = best_two_triton.best_two(x, matrix, bias)
    left = torch.cat([torch.arange(7), torch.arange(200, 300)]).to(x.device)
    wanted, _ = reference.best_two(x, matrix[left], bias[left])
    assert ids.equal(left[wanted])
    assert leads.isfinite().all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("B", [1, 3, 5])
def test_ties_across_tiles_go_to_the_lower_id(metric, count, B):
    table = rows(10, 8, seed=1).repeat(60, 1)  # each row sixty times, in every tile
    _, ids = nearest_triton.nearest_tokens(rows(B, 8), table, count, metric)
    for row in ids.tolist():
        for start in range(0, count, 60):
            run = row[start : start + 60]
            assert run == list(range(run[0] % 10, 600, 10))[: len(run)]


@pytest.mark.parametrize("count", [1, 3])
def test_rows_and_queries_that_are_not_numbers_are_not_returned(count):
    queries, table = rows(3, 40), rows(80, 40, seed=1)
    table[2:, 7], queries[1, 3] = torch.nan, torch.nan
    values, ids = nearest_triton.nearest_tokens(queries, table, count)
    assert (ids[1] == -1).all()
    assert values[1].eq(torch.inf).all()
    assert set(ids[[0, 2]].flatten().tolist()) - {-1} <= {0, 1}


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_asked_gives_nothing(count):
    values, ids = nearest_triton.nearest_tokens(rows(0, 8), rows(5, 8), count)
    assert values.shape == ids.shape == (0, count)


@pytest.mark.parametrize("prediction_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 256), (3, 9, 300), (1, 17, 3), (2, 0, 8)], ids=str)
def test_residuals_in_mixed_precision_and_at_strides(shape, prediction_dtype, target_dtype):
    B, C, D = shape
    predictions = rows(C, B, D + 1, dtype=prediction_dtype).transpose(0, 1)[..., 1:]
    targets = rows(B, D, seed=1, dtype=target_dtype)
    targets[0] = 0
    found = residuals_triton.residuals(predictions, targets)
    check_residuals(found, predictions, targets)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("D", [1, 33, 1030])  # the last in two blocks
def test_adam_step_late_in_and_after_the_schedule(D, clip):
    B, total = 6, 1000
    tables = [rows(B, D + 3, seed=i)[:, i % 3 : D + i % 3] for i in range(4)]
    tables[3].abs_()
    steps, active = (
        torch.tensor([0, 10, 500, 999, 1500, 7], device=TRITON_DEVICE),
        torch.arange(B, device=TRITON_DEVICE) < 5,
    )
    settings = {"lr": 0.3, "total_steps": total, "clip": clip, "weight_decay": 0.01}
    before, taken = [t.clone() for t in tables], steps.clone()
    wanted, counted = [t.double() for t in tables], steps.clone()
    reference.adam_step(*wanted, counted, active, **settings)
    adam_triton.adam_step(*tables, steps, active, **settings)
    assert torch.equal(steps, counted)
    assert torch.equal(tables[1], before[1])
    check_adam((tables[0], *tables[2:]), (wanted[0], *wanted[2:]), before, taken, **settings)


def test_adam_step_keeps_a_bad_gradient_in_its_lane():
    tables = [rows(3, 20, seed=i).abs() for i in range(4)]
    tables[1][1, 5] = torch.nan
    steps, active = (
        torch.zeros(3, dtype=torch.long, device=TRITON_DEVICE),
        torch.ones(3, dtype=torch.bool, device=TRITON_DEVICE),
    )
    adam_triton.adam_step(*tables, steps, active, lr=0.1, total_steps=10)
    assert tables[0].isfinite().all(1).tolist() == [True, False, True]
