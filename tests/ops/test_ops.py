"""Every op against a naive loop in float64, at even and ragged shapes, on every backend that runs here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from invert_fast.kernels import reference
from torch import Tensor

from invert_fast import ops
from invert_fast.ops import native
from invert_fast.ops.table import HAS_TRITON

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def backends(op: str) -> list:
    """Those of the op's table; what cannot run here is skipped by name. Triton runs in its interpreter."""
    missing = {
        "cpp": "invert_fast._C is not built" if native._C is None else None,
        "triton": None if HAS_TRITON else "Triton is not installed",
        "cuda": "it takes tensors of a GPU: see test_cuda.py, and test_cuda_on_cpu.py",
    }
    return [
        pytest.param(
            name, marks=pytest.mark.skipif(bool(missing.get(name)), reason=f"backend {name}: {missing.get(name)}")
        )
        for name in ["auto", *sorted(ops.BACKENDS[op])]
    ]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---- prefix_attention


def dense(query, key, value, scale, window=None, softcap=None) -> Tensor:
    """Plain causal attention over one whole sequence: `[H, T, d]` each, loop by loop, float64."""
    query, key, value = query.double(), key.double(), value.double()
    heads, T, d = query.shape
    out = torch.zeros(heads, T, d, dtype=torch.float64)
    for h in range(heads):
        own = h // (heads // key.shape[0])
        for i in range(T):
            start = 0 if window is None else max(0, i - window + 1)
            scores = key[own, start : i + 1] @ query[h, i] * scale
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            out[h, i] = torch.softmax(scores, 0) @ value[own, start : i + 1]
    return out


def expected(query, key, value, prefix_key, prefix_value, lengths, slots, *, scale, causal, window, softcap) -> Tensor:
    """`prefix_attention` as whole sequences: one a lane for a draft, one a candidate for a fan-out."""
    B, Hq, K, d = query.shape
    out = torch.zeros(B, K, Hq, d, dtype=torch.float64)
    for b in range(B):
        length = 0 if prefix_key is None else int(lengths[b])
        row = b if slots is None else int(slots[b])
        none = key[b, :, :0]
        before = (none, none) if prefix_key is None else (prefix_key[row, :, :length], prefix_value[row, :, :length])
        for steps in [range(K)] if causal else [[k] for k in range(K)]:
            keys = torch.cat([before[0], key[b, :, list(steps)]], 1)
            values = torch.cat([before[1], value[b, :, list(steps)]], 1)
            filler = torch.zeros(Hq, length, d, dtype=query.dtype)
            queries = torch.cat([filler, query[b, :, list(steps)]], 1)
            out[b, list(steps)] = dense(queries, keys, values, scale, window, softcap)[:, length:].transpose(0, 1)
    return out


def case(B=3, groups=1, heads=2, K=4, d=8, S=None, M=9, lengths=None, slots=None, dtype=torch.float32, seed=0) -> tuple:
    S = S or B
    q, k, v = (random(B, h, K, d, seed=seed + i, dtype=dtype) for i, h in enumerate((heads * groups, heads, heads)))
    if lengths is None:
        return q, k, v, None, None, None, None
    stored = random(2, S, heads, M, d, seed=seed + 9, dtype=dtype)
    lengths = torch.tensor(lengths)
    rows = torch.arange(B) if slots is None else torch.tensor(slots)
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        stored[:, row, :, length:] = 1e4  # what earlier texts left there must not matter
    return q, k, v, stored[0], stored[1], lengths, None if slots is None else rows


CASES = {
    "no prefix": {},
    "one token": {"K": 1, "B": 1},
    "even": {"lengths": [8, 8, 8], "M": 8},
    "ragged": {"lengths": [7, 0, 3]},
    "grouped heads": {"lengths": [7, 0, 3], "groups": 3},
    "one query group": {"lengths": [2, 9, 5], "groups": 4, "heads": 1, "d": 5},
    "slots": {"lengths": [4, 9, 1], "slots": [5, 0, 2], "S": 6},
    "permuted slots": {"lengths": [4, 9, 1], "slots": [2, 0, 1]},
    "wide": {"lengths": [1, 2], "B": 2, "K": 33, "d": 7, "groups": 2},
}


@pytest.mark.parametrize("backend", backends("prefix_attention"))
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("causal", [True, False], ids=["draft", "fan-out"])
@pytest.mark.parametrize("name", CASES)
def test_prefix_attention_equals_attention_over_whole_sequences(name, causal, window, softcap, backend):
    arguments = case(**CASES[name])
    options = {"scale": 0.3, "causal": causal, "window": window, "softcap": softcap}
    found = ops.prefix_attention(*arguments, **options, backend=backend)
    torch.testing.assert_close(found.double(), expected(*arguments, **options), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", backends("prefix_attention"))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_prefix_attention_in_low_precision(dtype, backend):
    arguments = case(**CASES["grouped heads"], dtype=dtype)
    options = {"scale": 0.3, "causal": True, "window": None, "softcap": None}
    found = ops.prefix_attention(*arguments, **options, backend=backend)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected(*arguments, **options), rtol=0, atol=TOLERANCE[dtype])


@given(st.data())
def test_prefix_attention_at_any_shape(data):
    draw = data.draw
    B, M = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    S = draw(st.integers(B, 6))
    shape = {
        "B": B,
        "M": M,
        "S": S,
        "K": draw(st.integers(1, 9)),
        "d": draw(st.integers(1, 9)),
        "groups": draw(st.integers(1, 3)),
        "heads": draw(st.integers(1, 3)),
        "lengths": draw(st.lists(st.integers(0, M), min_size=B, max_size=B)),
        "slots": draw(st.permutations(range(S)))[:B],
    }
    arguments = case(**shape)
    options = {
        "scale": 0.5,
        "causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(1, 12)),
        "softcap": draw(st.none() | st.just(3.0)),
    }
    for backend in ("reference", "fused"):
        found = ops.prefix_attention(*arguments, **options, backend=backend)
        torch.testing.assert_close(found.double(), expected(*arguments, **options), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", backends("prefix_attention"))
@pytest.mark.parametrize("causal", [True, False], ids=["draft", "fan-out"])
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_flow_to_queries_keys_and_values(causal, window, backend):
    arguments = case(**CASES["grouped heads"])
    options = {"scale": 0.3, "causal": causal, "window": window, "softcap": None}
    weights = random(3, 4, 6, 8, seed=5)

    def gradients(attention) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in arguments[:3]]
        out = attention(*leaves, *arguments[3:], **options)
        return list(torch.autograd.grad((out * weights).sum(), leaves))

    oracle = gradients(expected)
    found = gradients(lambda *a, **k: ops.prefix_attention(*a, **k, backend=backend))
    for ours, theirs in zip(found, oracle, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_prefix_attention_refuses_heads_and_lengths_that_do_not_fit():
    q, k, v, *rest = case(heads=2)
    with pytest.raises(ValueError, match="multiple of Hkv"):
        ops.prefix_attention(q[:, :1], k, v, *rest, scale=1.0, causal=True)
    with pytest.raises(ValueError, match="multiple of Hkv"):
        ops.prefix_attention(q[:, :, :2], k, v, *rest, scale=1.0, causal=True)


# ---- residuals


@pytest.mark.parametrize("backend", backends("residuals"))
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 8, 64), (3, 7, 33), (4, 0, 16), (0, 3, 8)], ids=str)
def test_residuals_are_relative_distances(shape, backend):
    predictions, targets = random(*shape), random(shape[0], shape[2], seed=1)
    oracle = torch.empty(shape[:2], dtype=torch.float64)
    for b in range(shape[0]):
        for c in range(shape[1]):
            difference = predictions[b, c].double() - targets[b].double()
            oracle[b, c] = difference.square().sum().sqrt() / targets[b].double().square().sum().sqrt()
    found = ops.residuals(predictions, targets, backend=backend)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), oracle, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_residuals_of_any_precision_and_with_gradients(dtype):
    predictions, targets = random(2, 3, 16, dtype=dtype), random(2, 16, seed=1)
    oracle = reference.residuals(predictions.float(), targets)
    torch.testing.assert_close(ops.residuals(predictions, targets), oracle)
    leaf = predictions.float().requires_grad_()
    assert ops.residuals(leaf, targets).requires_grad


# ---- nearest_tokens


def distances(queries: Tensor, table: Tensor, metric: str) -> Tensor:
    queries, table = queries.double(), table.double()
    out = torch.empty(len(queries), len(table), dtype=torch.float64)
    for b, q in enumerate(queries):
        for v, e in enumerate(table):
            out[b, v] = {
                "l1": (q - e).abs().sum(),
                "l2": (q - e).square().sum(),
                "cosine": 1 - (q @ e) / (q.norm() * e.norm()),
                "dot": -(q @ e),
            }[metric]
    return out


metrics = pytest.mark.parametrize("metric", ["l1", "l2", "cosine", "dot"])
nearest_backends = pytest.mark.parametrize("backend", backends("nearest_tokens"))


@nearest_backends
@metrics
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 64, 16, 8), (3, 37, 5, 37), (5, 100, 33, 1)], ids=str)
def test_nearest_tokens_finds_the_nearest_in_order(shape, metric, backend):
    B, V, D, count = shape
    queries, table = random(B, D), random(V, D, seed=1)
    oracle = distances(queries, table, metric)
    values, ids = ops.nearest_tokens(queries, table, count, metric, backend=backend)
    torch.testing.assert_close(values.double(), oracle.sort(-1).values[:, :count], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(oracle.gather(1, ids), values.double(), rtol=1e-4, atol=1e-5)
    assert all(len(set(row)) == count for row in ids.tolist())


@nearest_backends
@metrics
@pytest.mark.parametrize("count", [1, 5])
def test_ties_go_to_the_lower_id(metric, count, backend):
    table = random(12, 4, seed=1)[torch.tensor([0, 1, 2, 3] * 3)]  # ids 4 apart have equal rows
    _, ids = ops.nearest_tokens(table[:4].clone(), table, count, metric, backend=backend)
    best = distances(table[:4], table, metric).min(-1).values
    for row, first in enumerate(ids[:, 0].tolist()):
        assert first < 4
        assert distances(table[row : row + 1], table, metric)[0, first] == pytest.approx(best[row].item(), abs=1e-5)
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
    oracle = distances(queries, table, metric).masked_fill(banned, torch.inf).sort(-1).values[:, :count]
    torch.testing.assert_close(values.double(), oracle, rtol=1e-4, atol=1e-5)
    assert not banned.gather(1, ids.clamp_min(0))[ids >= 0].any()
    assert ids[2].tolist()[3:] == [-1] * max(0, count - 3)
    assert values[2, 3:].isinf().all()


@nearest_backends
def test_a_query_with_every_row_banned_finds_none(backend):
    values, ids = ops.nearest_tokens(random(1, 4), random(5, 4), 2, "l1", torch.ones(1, 5).bool(), backend=backend)
    assert ids.tolist() == [[-1, -1]]
    assert values.isinf().all()


# ---- shapes and names


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.residuals(random(2, 3, 4), random(3, 4)),
        lambda: ops.residuals(random(2, 4), random(2, 4)),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 4), 1),
        lambda: ops.nearest_tokens(random(3), random(5, 3), 1),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 0),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 6),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 1, "manhattan"),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 1, banned=torch.zeros(2, 4).bool()),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 1, banned=torch.zeros(2, 5)),
        lambda: ops.residuals(random(2, 3, 4), random(2, 4), backend="abacus"),
    ],
)
def test_wrong_shapes_and_names_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|asked for"):
        call()


# ---- adam_step


def torch_adam(proxy, grads, clip, lr, total_steps, weight_decay) -> Tensor:
    """One lane, step by step, by torch.optim with its own clipping and schedule."""
    row = torch.nn.Parameter(proxy.clone())
    optimizer = torch.optim.Adam([row], lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)
    for grad in grads:
        row.grad = grad.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([row], clip)
        optimizer.step()
        schedule.step()
    return row.detach()


@pytest.mark.parametrize("backend", backends("adam_step"))
@pytest.mark.parametrize(("B", "D"), [(1, 1), (3, 7), (2, 256), (17, 33)])
@pytest.mark.parametrize(("clip", "weight_decay"), [(1.0, 1e-2), (None, 1e-2), (0.3, 0)])
def test_adam_step_is_torchs_adam_lane_by_lane_at_its_own_step(backend, B, D, clip, weight_decay):
    settings = {"lr": 0.05, "total_steps": 20, "clip": clip, "weight_decay": weight_decay}
    start, grads = random(B, D), random(12, B, D, seed=1)
    proxy, mean, square = start.clone(), torch.zeros(B, D), torch.zeros(B, D)
    step = torch.zeros(B, dtype=torch.long)
    plan = torch.rand(12, B, generator=torch.Generator().manual_seed(2)) < 0.7
    for grad, active in zip(grads, plan, strict=True):
        ops.adam_step(proxy, grad, mean, square, step, active, backend=backend, **settings)
    assert step.tolist() == plan.sum(0).tolist()
    for b in range(B):
        taken = [grad[b] for grad, active in zip(grads, plan, strict=True) if active[b]]
        wanted = torch_adam(start[b], taken, **{k: settings[k] for k in settings})
        torch.testing.assert_close(proxy[b], wanted, rtol=2e-5, atol=2e-6)


def test_adam_step_refuses_tables_that_do_not_fit():
    row, steps, active = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), torch.ones(2).bool()
    for wrong in [
        (row, steps[:1], active),
        (row.double(), steps, active),
        (row, steps.int(), active),
        (row, steps, steps),
    ]:
        grad, *rest = wrong
        with pytest.raises(ValueError, match="expected four fp32"):
            ops.adam_step(row, grad, row, row, *rest, lr=0.1, total_steps=1)
    with pytest.raises(ValueError, match="on exp_avg with gaps in the rows: expected stride 1"):
        ops.adam_step(row, row, torch.zeros(3, 2).T, row, steps, active, lr=0.1, total_steps=1)
