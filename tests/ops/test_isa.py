"""Every C++ op on every instruction set that this machine and build have, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from invert_fast.kernels import reference

from invert_fast import ops
from invert_fast.ops import draft_attention, fan_out_attention
from invert_fast.ops.gelu import cpp as gelu
from invert_fast.ops.linear import pack

from ..limits import close
from . import attention
from .adam import check as check_adam
from .distances import check as check_nearest
from .gelu import check as check_gelu
from .inputs import DTYPES, METRICS, random
from .products import check as check_product
from .residuals import check as check_residuals
from .scores import among
from .scores import check as check_best_two

C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")

pytestmark = pytest.mark.numeric
NAMES = ["default", "avx2", "avx512"]


@pytest.fixture(params=C.isas())
def isa(request):
    former = C.isa()
    C.use_isa(request.param)
    yield request.param
    C.use_isa(former)


every_isa = pytest.mark.usefixtures("isa")


# ---- the choice


def test_the_widest_is_the_default_and_each_can_be_had():
    former, names = C.isa(), C.isas()
    assert names == NAMES[: len(names)]
    assert C.build_info()["clones"][: len(names)] == names
    try:
        for name in names:
            C.use_isa(name)
            assert C.isa() == name
            assert C.tiles_are_wide() == (name != "default")
        C.use_isa("default")
        C.use_isa("")
        assert C.isa() == names[-1]
    finally:
        C.use_isa(former)


def test_what_is_unknown_or_not_there_is_refused():
    former, names = C.isa(), C.isas()
    expected = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    for name in ("foo", "AVX2", "avx512f"):
        with pytest.raises(ValueError, match=f"^INVERT_FAST_ISA='{name}' is unknown, expected {expected}$"):
            C.use_isa(name)
    for name in NAMES[len(names) :]:
        with pytest.raises(ValueError, match=f"^INVERT_FAST_ISA='{name}': this .* has no AVX.*, expected {expected}$"):
            C.use_isa(name)
    assert C.isa() == former


# ---- the ops


@every_isa
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "D"), [(3, 77), (9, 768)])  # nine are searched by a bound first
def test_nearest_tokens(B, D, dtype, metric):
    queries, table = random(B, D), random(400, D, seed=1, dtype=dtype)
    found = ops.nearest_tokens(queries, table, 5, metric, backend="cpp")
    assert (found[1] >= 0).all()
    check_nearest(found, queries, table, metric)


@every_isa
@pytest.mark.parametrize("target", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [5, 77, 768])
def test_residuals(D, dtype, target):
    predictions, targets = random(3, 7, D, dtype=dtype), random(3, D, seed=1, dtype=target)
    check_residuals(ops.residuals(predictions, targets, backend="cpp"), predictions, targets)


@every_isa
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("D", [5, 77, 768])
def test_adam_step(D, clip):
    tables = [random(4, D, seed=seed) for seed in range(4)]
    tables[3].square_()
    step, active = torch.tensor([0, 1, 7, 20]), torch.tensor([True, True, False, True])
    settings = {"lr": 0.1, "total_steps": 50, "clip": clip, "weight_decay": 0.01, "betas": (0.9, 0.999)}
    before, taken, wanted = [t.clone() for t in tables], step.clone(), [t.double() for t in tables]
    reference.adam_step(*wanted, step.clone(), active, **settings)
    ops.adam_step(*tables, step, active, backend="cpp", **settings)
    assert step.tolist() == [1, 2, 7, 21]
    check_adam((tables[0], *tables[2:]), (wanted[0], *wanted[2:]), before, taken, **settings)


@every_isa
@pytest.mark.parametrize("count", [1, 7, 1003])
def test_gelu_and_its_gradient(count):
    check_gelu(gelu, 5 * random(count), random(count, seed=1))


@every_isa
@pytest.mark.parametrize(("n", "K", "N"), [(4, 3, 5), (13, 77, 70), (64, 256, 48)])
def test_product(n, K, N):
    x, matrix, bias = random(n, K), random(K, N, seed=1), random(N, seed=2)
    check_product(ops.linear(x, matrix, bias, pack(matrix), backend="cpp"), x, matrix, bias)
    check_product(ops.linear(x, matrix.t().contiguous().t(), bias, backend="cpp"), x, matrix, bias)


@every_isa
@pytest.mark.parametrize(("n", "V", "K"), [(1, 2, 3), (13, 70, 77), (200, 333, 64)])
def test_best_two(n, V, K):
    x, matrix, bias = random(n, K), random(V, K, seed=1), random(V, seed=2)
    check_best_two(ops.best_two(x, matrix, bias, backend="cpp"), x, matrix, bias)


@every_isa
@pytest.mark.parametrize(("n", "V", "K"), [(1, 2, 3), (13, 70, 77), (200, 333, 64)])
def test_best_two_by_a_sketch_that_leaves_nothing_out(n, V, K):
    x, matrix, bias = random(n, K), random(V, K, seed=1), random(V, seed=2)
    packed, ids, leads = pack(matrix.T), torch.empty(n, dtype=torch.long), torch.empty(n)
    rows = (x.data_ptr(), matrix.data_ptr(), bias.data_ptr())
    sketch = (x.data_ptr(), packed.data_ptr(), bias.data_ptr())
    C.best_two_by_sketch(sketch, (n, K, K), rows, (n, K, K), ids.data_ptr(), leads.data_ptr(), V, 1)
    check_best_two((ids, leads), x, matrix, bias, among(x, matrix, bias, x, matrix, bias))


@every_isa
@pytest.mark.parametrize(("K", "d"), [(1, 16), (17, 20), (40, 64)])
def test_draft_attention(K, d):
    arguments = attention.case(K=K, d=d, groups=2, lengths=[37, 0, 20], slots=[2, 0, 3], S=4, M=37)
    options, size = {"scale": 0.2, "causal": True}, attention.sizes(*arguments, scale=0.2, causal=True)
    found = draft_attention.attention(*arguments, scale=0.2)
    close(found, attention.expected(*arguments, **options), scale=size.out, terms=size.terms)


@every_isa
@pytest.mark.parametrize(("N", "d"), [(1, 16), (3, 20), (5, 64)])
def test_fan_out_and_its_gradient(N, d):
    arguments = attention.case(K=N, d=d, groups=2, lengths=[37, 0, 20], slots=[2, 0, 3], S=4, M=37)
    options, grad = {"scale": 0.2, "causal": False}, random(3, N, 4, d, seed=9)
    found = attention.with_gradients(fan_out_attention.attention, arguments, grad, scale=0.2)
    doubles = tuple(t.double() if t.is_floating_point() else t for t in arguments)
    wanted, size = (
        attention.with_gradients(attention.expected, doubles, grad, **options),
        attention.sizes(*arguments, **options, grad=grad),
    )
    for ours, exact, scale in zip(found, wanted, size[:4], strict=True):
        close(ours, exact, scale=scale, terms=size.terms)
