"""The compiled `nearest_tokens` against float64, for every metric, type, stride, ban, count and thread count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from .distances import check
from .inputs import METRICS, random

C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")

pytestmark = pytest.mark.numeric
every_metric = pytest.mark.parametrize("metric", METRICS)


def nearest(
    queries: Tensor, table: Tensor, count: int, metric: str = "l1", banned: Tensor | None = None, threads: int = 1
) -> tuple[Tensor, Tensor]:
    """The op, with a canary behind each of its outputs."""
    (B, D), V = queries.shape, len(table)
    distances, ids = torch.full((B * count + 1,), -7.0), torch.full((B * count + 1,), -7)
    C.nearest_tokens(
        *(queries.data_ptr(), table.data_ptr(), 0 if banned is None else banned.data_ptr()),
        *(distances.data_ptr(), ids.data_ptr(), B, V, D, count),
        *(queries.stride(0), table.stride(0), 0 if banned is None else banned.stride(0)),
        *(METRICS.index(metric), table.dtype == torch.bfloat16, threads),
    )
    assert (distances[-1], ids[-1]) == (-7, -7), "the op wrote past its output"
    return distances[:-1].view(B, count), ids[:-1].view(B, count)


@given(st.data())
def test_matches_float64_at_any_shape_type_stride_and_ban(data):
    draw = data.draw
    B, V, D = draw(st.integers(0, 11)), draw(st.integers(1, 90)), draw(st.integers(0, 150))
    pad_b, pad_v, pad_d = draw(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 17)))
    count, metric = draw(st.integers(1, V)), draw(st.sampled_from(METRICS))
    seed = draw(st.integers(0, 2**31))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    # Views into the middle of larger tensors: rows are unaligned, and a wrong stride reads a wrong value.
    queries = random(B + pad_b, D + pad_d, seed=seed)[pad_b:, pad_d:]
    table = random(V + pad_v, D + pad_d, seed=seed + 1, dtype=dtype)[pad_v:, pad_d:]
    banned = None
    if share := draw(st.sampled_from([0, 0.3, 0.98, 1.1])):
        banned = (torch.rand(B, V + 3, generator=torch.Generator().manual_seed(seed)) < share)[:, 3:]
    found = nearest(queries, table, count, metric, banned, draw(st.integers(0, 4)))
    check(found, queries, table, metric, banned)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "D", "count"), [(1, 768, 1), (5, 1023, 3), (8, 64, 700)])
def test_matches_float64_at_model_widths(B, D, count, dtype, metric):
    queries, table = random(B, D), random(701, D, seed=1, dtype=dtype)
    check(nearest(queries, table, count, metric), queries, table, metric)


@every_metric
@pytest.mark.parametrize("B", [1, 4, 7])
@pytest.mark.parametrize("count", [1, 2, 9, 300])
def test_equal_rows_come_in_the_order_of_their_ids(metric, count, B):
    table = random(10, 33, seed=1).repeat(30, 1)
    _, ids = nearest(table[:B].clone() + 0.01, table, count, metric)
    by_class = torch.arange(300).view(30, 10).T  # of each class, its ids from low to high
    for row in ids.tolist():
        whole, rest = divmod(count, 30)
        classes = [i % 10 for i in row[::30]]
        wanted = [i for which in classes[:whole] for i in by_class[which].tolist()]
        assert row == wanted + (by_class[classes[-1]].tolist()[:rest] if rest else [])


@every_metric
def test_neither_threads_nor_other_queries_change_a_bit(metric):
    queries, table = random(13, 200), random(9001, 200, seed=1)
    alone = [nearest(q[None], table, 20, metric) for q in queries]
    for threads in (0, 1, 2, 5, 64):
        values, ids = nearest(queries, table, 20, metric, threads=threads)
        assert torch.equal(values, torch.cat([v for v, _ in alone])), f"{threads} threads"
        assert torch.equal(ids, torch.cat([i for _, i in alone])), f"{threads} threads"


@pytest.mark.parametrize(("offset", "spread"), [(1, 1e-4), (100, 1e-4), (1_000_000, 1)])
def test_the_bound_on_l1_allows_for_what_cancels(offset, spread):
    """Offsets at which the roundings of the bound, were they left out of it, drop the nearest row of some query."""
    table = offset + random(1, 100) + spread * random(2000, 100, seed=1)
    for seed in range(20):
        queries = table[seed : seed + 12] + spread * random(12, 100, seed=2 + seed)
        alone = [nearest(q[None], table, 3) for q in queries]
        values, ids = nearest(queries, table, 3)
        assert torch.equal(values, torch.cat([v for v, _ in alone]))
        assert torch.equal(ids, torch.cat([i for _, i in alone]))


@given(st.data())
def test_the_bound_on_l1_drops_no_row_that_the_exact_sum_keeps(data):
    """Many queries are searched by a bound, one query exactly: every bit must be the same."""
    draw = data.draw
    B, D, count = draw(st.integers(8, 13)), draw(st.integers(1, 200)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = 10.0 ** draw(st.sampled_from([-44, -38, -30, -3, 0, 3, 30, 35, 36, 37, 38]))
    offset = draw(st.sampled_from([0, 1, 100, 10_000, -1_000_000]))  # in units of the scale: how much cancels
    spread = draw(st.sampled_from([0, 1e-7, 1e-4, 1]))  # of the rows about each other: ties within rounding and none
    centre = torch.randn(D, generator=generator, dtype=torch.float64)
    table = centre + spread * torch.randn(500, D, generator=generator, dtype=torch.float64)
    table = ((table + offset) * scale).float()
    queries = table[torch.randint(500, (B,), generator=generator)].clone()
    if draw(st.booleans()):
        queries += spread * scale * torch.randn(B, D, generator=generator)
    if draw(st.booleans()):
        table[torch.randint(500, (20,), generator=generator), draw(st.integers(0, D - 1))] = draw(
            st.sampled_from([float("nan"), float("inf"), 3e38, -3e38])
        )
    values, ids = nearest(queries, table, count, threads=draw(st.integers(1, 2)))
    alone = [nearest(q[None], table, count) for q in queries]
    assert torch.equal(values, torch.cat([v for v, _ in alone]))
    assert torch.equal(ids, torch.cat([i for _, i in alone]))


@every_metric
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
def test_rows_at_no_finite_distance_are_not_returned(metric, count, bad):
    queries, table = random(5, 40).abs(), random(6, 40, seed=1).abs()
    table[2:, 7] = bad if metric != "dot" else -bad  # −⟨q, e⟩ is +inf then
    queries[3, 5] = float("nan")
    values, ids = nearest(queries, table, count, metric)
    kept = [i for i in range(5) if i != 3]
    assert set(ids[kept].flatten().tolist()) - {-1} <= {0, 1}
    assert (ids[3] == -1).all()
    assert values[3].eq(torch.inf).all()
    if count > 2:
        assert (ids[kept, 2:] == -1).all()


def test_negative_and_unsigned_zeros_are_equal():
    table = torch.tensor([[0.0], [-0.0], [0.0]])
    assert nearest(torch.tensor([[1.0]]), table, 3, "dot")[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("name", ["B", "V", "D", "count", "threads"])
def test_negative_sizes_are_named(name):
    sizes = {"B": 0, "V": 0, "D": 0, "count": 0, "threads": 1} | {name: -3}
    with pytest.raises(ValueError, match=f"{name} must be >= 0, got -3"):
        C.nearest_tokens(
            *(0, 0, 0, 0, 0), **sizes, query_stride=0, table_stride=0, banned_stride=0, metric=0, table_is_bf16=False
        )


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match="metric must be 0 to 3, got 4"):
        C.nearest_tokens(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, False, 1)
