"""csrc/best_two.cpp: the best two columns of a product that is not written down, whole and by a sketch."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from invert_fast import ops
from invert_fast.ops.best_two import LISTED, BestTwo
from invert_fast.ops.linear import pack

from ..limits import close, limit
from .inputs import backends, random
from .scores import agree, among, check, scores, sizes

_C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")
pytestmark = pytest.mark.numeric


def fused(matrix: Tensor, gram: Tensor | None = None) -> BestTwo:
    """In C++, where PyTorch might be faster, too."""
    best_two = BestTwo(matrix, gram)
    best_two._compiled = True
    return best_two


@pytest.mark.parametrize("backend", backends("best_two"))
@pytest.mark.parametrize("shape", [(1, 2, 1), (5, 70, 33), (0, 9, 4), (64, 300, 16)], ids=str)
def test_every_backend_finds_the_best_two(shape, backend):
    n, V, K = shape
    x, matrix, bias = random(n, K), random(V, K, seed=1), random(V, seed=2)
    found = ops.best_two(x, matrix, bias, backend=backend)
    assert [t.shape for t in found] == [(n,), (n,)]
    check(found, x, matrix, bias)


@pytest.mark.parametrize("backend", backends("best_two"))
def test_ties_go_to_the_lower_id_on_every_backend(backend):
    ids, leads = ops.best_two(torch.ones(9, 8), torch.ones(40, 8), torch.zeros(40), backend=backend)
    assert ids.eq(0).all()
    assert leads.eq(0).all()


@given(st.data())
def test_the_best_two_columns_of_any_product(data):
    draw = data.draw
    n, V, K = draw(st.integers(0, 20)), draw(st.integers(2, 70)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**31))
    x, matrix, bias = random(n, K + 3, seed=seed)[:, 3:], random(V, K, seed=seed + 1), random(V, seed=seed + 2)
    bias[torch.rand(V, generator=torch.Generator().manual_seed(seed)) < draw(st.sampled_from([0, 0.5]))] = -1e30
    check(fused(matrix)(x, bias), x, matrix, bias)


def test_fused_and_plain_search_for_the_best_two_agree_at_the_sizes_of_models(monkeypatch):
    x, matrix, bias = random(500, 64), random(5003, 64, seed=1), random(5003, seed=2)
    ours, plain = fused(matrix), BestTwo(matrix)
    plain._compiled = False
    monkeypatch.setattr(import_module("invert_fast.ops.best_two"), "_SCORES_CACHED", 4 * 5003 * 7)
    wanted = plain(x, bias)
    check(wanted, x, matrix, bias)
    alone = torch.cat([ours(row[None], bias)[1] for row in x[:10]])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found = ours(x, bias)
            check(found, x, matrix, bias)
            agree(found, wanted, x, matrix, bias)
            assert torch.equal(found[1][:10], alone)
    finally:
        torch.set_num_threads(threads)


def test_ties_go_to_the_lower_id_and_spoilt_rows_to_themselves():
    best_two = fused(torch.ones(40, 8))
    x = torch.ones(9, 8)
    x[3, 2] = float("nan")
    ids, leads = best_two(x, torch.zeros(40))
    others = [0, 1, 2, 4, 5, 6, 7, 8]
    assert ids[others].eq(0).all()
    assert leads[others].eq(0).all()
    assert 0 <= ids[3] < 40


# ---- by a sketch


@given(st.data())
def test_a_sketch_names_the_candidates_and_the_product_decides(data):
    draw = data.draw
    n, V, K, r = draw(st.integers(0, 20)), draw(st.integers(2, 300)), draw(st.integers(1, 70)), draw(st.integers(1, 20))
    seed, wide = draw(st.integers(0, 2**31)), draw(st.sampled_from([1.0, 30.0]))
    x, matrix, bias = random(n, K + 3, seed=seed)[:, 3:], random(V, K, seed=seed + 1), random(V, seed=seed + 2)
    low, low_matrix, low_bias = (
        random(n, r, seed=seed + 3) * wide,
        random(V, r, seed=seed + 4),
        random(V, seed=seed + 5),
    )
    banned = torch.rand(V, generator=torch.Generator().manual_seed(seed)) < draw(st.sampled_from([0, 0.5]))
    banned[:2] = False
    low_bias[banned] = -torch.inf
    packed = pack(low_matrix.t())
    ids, leads = torch.full((n + 1,), -7), torch.full((n + 1,), -7.0)
    _C.best_two_by_sketch(
        (low.data_ptr(), packed.data_ptr(), low_bias.data_ptr()),
        (n, r, r),
        (x.data_ptr(), matrix.data_ptr(), bias.data_ptr()),
        (n, K, x.stride(0)),
        *(ids.data_ptr(), leads.data_ptr(), V, draw(st.sampled_from([1, 3]))),
    )
    assert (ids[n], leads[n]) == (-7, -7), "the op wrote past its rows"
    if n:
        check((ids[:n], leads[:n]), x, matrix, bias, among(x, matrix, bias, low, low_matrix, low_bias))


def likelihood(V: int = 3000, K: int = 64, n: int = 700, noise: float = 1.0):
    """Rows that tokens gave, in a channel where few of the directions tell tokens apart."""
    spread = torch.cat([torch.full((12,), 5.0), torch.full((K - 12,), 0.3)])
    mix = torch.linalg.qr(random(K, K, seed=3)).Q
    matrix = random(V, K, seed=4) * spread @ mix
    gram = mix.T @ torch.diag(torch.linspace(0.5, 2, K)) @ mix
    root = torch.linalg.cholesky(gram)
    truth = torch.arange(n) * 7 % V
    x = (matrix[truth] @ root + noise * random(n, K, seed=5)) @ root.T
    return fused(matrix, gram), x, -0.5 * ((matrix @ gram) * matrix).sum(-1), truth


def test_a_sketch_finds_what_looking_at_all_finds():
    best_two, x, bias, truth = likelihood()
    whole, sketched = best_two(x, bias), best_two(x, bias, 1.0)
    made = best_two._made
    assert made is not None
    assert made.width <= 32
    assert torch.equal(sketched[0], whole[0])
    assert (whole[0] == truth).float().mean() > 0.95
    rounding = limit(whole[1], scale=4 * sizes(x, best_two.matrix, bias, whole[0]), terms=x.shape[1] + 2)
    assert (sketched[1] >= whole[1] - rounding).all(), "the second of a few is not above the second of all"
    # twice the likelihood with twice the states, and another bias on top
    extra = random(len(bias), seed=9)
    assert torch.equal(best_two(2 * x, 2 * bias + extra, 2.0)[0], best_two(2 * x, 2 * bias + extra)[0])


def test_a_row_finds_the_same_whatever_is_beside_it_and_however_many_threads_there_are():
    best_two, x, bias, _ = likelihood(n=400)
    ids, leads = best_two(x, bias, 1.0)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for part in (slice(0, 1), slice(3, 9), slice(100, 400), slice(None)):
                agree(best_two(x[part], bias, 1.0), (ids[part], leads[part]), x[part], best_two.matrix, bias)
    finally:
        torch.set_num_threads(threads)


def test_without_directions_that_stand_out_there_is_no_sketch():
    flat = fused(random(3000, 64), torch.eye(64))  # all directions alike
    few = fused(random(500, 64) * torch.linspace(9, 0, 64), torch.eye(64))
    unclear = fused(random(3000, 64) * torch.linspace(1, 0, 64) ** 8, torch.eye(64))  # little of anything
    spoilt = fused(random(3000, 64), torch.full((64, 64), torch.nan))
    broken = random(3000, 64) * torch.linspace(9, 0, 64)
    broken[7] = torch.nan  # a row of no token
    for best_two in (flat, few, unclear, spoilt, fused(broken, torch.eye(64))):
        x, bias = random(5, 64, seed=1), random(len(best_two.matrix), seed=2)
        for ours, theirs in zip(best_two(x, bias, 1.0), best_two(x, bias), strict=True):
            assert torch.equal(ours, theirs)
        assert best_two._made is None


def test_spoilt_rows_and_tokens_that_are_none_keep_to_themselves_in_a_sketch():
    best_two, x, bias, _ = likelihood(n=9)
    bias[::2] = -torch.inf
    wanted = best_two(x, bias, 1.0)[0]
    assert (wanted % 2 == 1).all()
    x[3, 2] = torch.nan
    ids, _ = best_two(x, bias, 1.0)
    others = [0, 1, 2, 4, 5, 6, 7, 8]
    assert torch.equal(ids[others], wanted[others])
    assert 0 <= ids[3] < len(bias)
    assert [len(t) for t in best_two(x[:0], bias, 1.0)] == [0, 0]


@given(st.data())
def test_a_short_list_has_the_best_of_every_class_best_first(data):
    """Of every 64th token the best of the sketch is there, scored in full; without a sketch the list is the best 64."""
    draw = data.draw
    n, V, K = draw(st.integers(0, 9)), draw(st.integers(2, 300)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**31))
    x, matrix, bias = random(n, K, seed=seed), random(V, K, seed=seed + 1), random(V, seed=seed + 2)
    bias[torch.rand(V, generator=torch.Generator().manual_seed(seed)) < draw(st.sampled_from([0, 0.5]))] = -torch.inf
    every = scores(x, matrix, bias)
    ids, found = fused(matrix).shortlist(x, bias)
    assert ids.shape == found.shape == (n, LISTED)
    assert _C.LISTED == LISTED, "the library writes so many places a row"
    assert (ids >= 0).eq(found > -torch.inf).all()
    assert (found[:, 1:] <= found[:, :-1]).all()
    wanted = torch.nn.functional.pad(every, (0, LISTED), value=-torch.inf).topk(LISTED, -1).values
    there = ids >= 0
    assert there.sum(-1).equal(wanted.isfinite().sum(-1))
    scale = sizes(x, matrix, bias.nan_to_num(neginf=0), ids.clamp_min(0))
    close(found[there].double(), every.gather(1, ids.clamp_min(0))[there], scale=scale[there], terms=K + 2)
    close(found[there].double(), wanted[there], scale=scale.amax(-1, keepdim=True).expand_as(scale)[there], terms=K + 2)


def test_a_short_list_by_a_sketch_leads_with_what_looking_at_all_finds():
    best_two, x, bias, _ = likelihood()
    bias[::5] = -torch.inf
    whole = best_two.shortlist(x, bias)
    best_two.list_by(best_two.gram)
    ids, found = best_two.shortlist(x, bias)
    made = best_two._list_sketch
    assert made is not None
    assert made.width < x.shape[1] / 2
    assert ids.ge(0).all()
    assert all(len(set(row)) == LISTED for row in ids.tolist())
    assert (found[:, 1:] <= found[:, :-1]).all()
    size = sizes(x, best_two.matrix, bias.nan_to_num(neginf=0), ids)
    close(found.double(), scores(x, best_two.matrix, bias).gather(1, ids), scale=size, terms=x.shape[1] + 2)
    assert (ids[:, 0] == whole[0][:, 0]).float().mean() > 0.98
    assert (ids[..., None] == whole[0][:, None, :4]).any(1).float().mean() > 0.95
