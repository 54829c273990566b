"""What is particular to the Triton kernels: tiles, programs and storage types.

They run in Triton's interpreter or, with TRITON_INTERPRET=0, on a GPU. The common tests of the ops, in test_ops.py, run
them too.
"""

from __future__ import annotations

import os

import pytest
import torch
from invert_fast.kernels import reference
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux)")

from invert_fast.kernels import adam_triton, nearest_triton, residuals_triton

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.bfloat16]
METRICS = ["l1", "l2", "cosine", "dot"]


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("B", "V", "D", "count"),
    [(1, 256, 128, 1), (3, 130, 33, 1), (18, 65, 40, 2), (2, 300, 32, 299), (4, 1200, 32, 5), (1, 63, 130, 3)],
)
def test_nearest_tokens_at_even_and_ragged_tiles(B, V, D, count, metric, dtype):
    queries, table = rows(B, D + 2)[:, 1:-1], rows(V, D + 1, seed=1, dtype=dtype)[:, :-1]
    banned = (rows(B, V + 1, seed=2) > 1)[:, 1:]
    values, ids = nearest_triton.nearest_tokens(queries, table, count, metric, banned)
    wanted, _ = reference.nearest_tokens(queries.double(), table, count, metric, banned)
    torch.testing.assert_close(values, wanted, rtol=1e-5, atol=2e-5)
    assert (ids >= 0).eq(values.isfinite()).all()
    assert not banned.gather(1, ids.clamp_min(0))[ids >= 0].any()
    every, order = reference.nearest_tokens(queries, table, V, metric)
    by_id = torch.empty_like(every).scatter(1, order, every)
    torch.testing.assert_close(by_id.gather(1, ids.clamp_min(0))[ids >= 0], values[ids >= 0], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("B", [1, 3, 9])
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
    torch.testing.assert_close(found, reference.residuals(predictions, targets), rtol=2e-6, atol=0)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("D", [1, 33, 1030])  # the last in two blocks
def test_adam_step_late_in_and_after_the_schedule(D, clip, decoupled):
    B, total = 6, 1000
    tables = [rows(B, D + 3, seed=i)[:, i % 3 : D + i % 3] for i in range(4)]
    tables[3].abs_()
    steps, active = torch.tensor([0, 10, 500, 999, 1500, 7], device=DEVICE), torch.arange(B, device=DEVICE) < 5
    settings = {"lr": 0.3, "total_steps": total, "clip": clip, "weight_decay": 0.01, "decoupled": decoupled}
    wanted = [t.clone() for t in (*tables, steps)]
    reference.adam_step(*wanted[:4], wanted[4], active, **settings)
    adam_triton.adam_step(*tables[:4], steps, active, **settings)
    for found, expected in zip((*tables, steps), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


def test_adam_step_keeps_a_bad_gradient_in_its_lane():
    tables = [rows(3, 20, seed=i).abs() for i in range(4)]
    tables[1][1, 5] = torch.nan
    steps, active = torch.zeros(3, dtype=torch.long, device=DEVICE), torch.ones(3, dtype=torch.bool, device=DEVICE)
    adam_triton.adam_step(*tables, steps, active, lr=0.1, total_steps=10)
    assert tables[0].isfinite().all(1).tolist() == [True, False, True]
