"""Every C++ op on every instruction set that this machine and build have, against the formula in float64.

How far a result may lie from it follows from how many numbers were added up and how large they were.
"""

from __future__ import annotations

import math

import pytest
import torch
from invert_fast.kernels import reference
from torch import Tensor

from invert_fast import ops
from invert_fast.ops import draft_attention, fan_out_attention
from invert_fast.ops.best_two import BestTwo
from invert_fast.ops.gelu import cpp as gelu
from invert_fast.ops.linear import pack

C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")

NAMES = ["default", "avx2", "avx512"]


@pytest.fixture(params=C.isas())
def isa(request):
    former = C.isa()
    C.use_isa(request.param)
    yield request.param
    C.use_isa(former)


every_isa = pytest.mark.usefixtures("isa")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(times):
    """By what share of itself a number is off after so many roundings to fp32, at most."""
    share = times * 2.0**-24
    return share / (1 - share)


def close(found: Tensor, wanted: Tensor, limit: Tensor) -> None:
    assert found.dtype == torch.float32
    off = (found.double() - wanted).abs()
    assert off.shape == limit.shape
    assert (off <= limit).all(), f"off by {off.max():.3g}, by {(off / limit).max():.3g} of what rounding allows"


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


def distances(q: Tensor, e: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """All of them [B, V], and how far off each may be."""
    q, e, D = q.double()[:, None], e.double(), q.shape[1]
    if metric == "l1":
        exact = (q - e).abs().sum(-1)
        return exact, rounded(D + 1) * exact
    if metric == "l2":
        exact = (q - e).square().sum(-1)
        return exact, rounded(D + 3) * exact
    dot, size = (q * e).sum(-1), (q * e).abs().sum(-1)
    if metric == "dot":
        return -dot, rounded(D + 1) * size
    exact = 1 - dot / (q.norm(dim=-1) * e.norm(dim=-1))
    return exact, torch.full_like(exact, rounded(3 * D + 10))  # a product and two lengths, of which none exceeds 1


@every_isa
@pytest.mark.parametrize("metric", ["l1", "l2", "cosine", "dot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "D"), [(3, 77), (9, 768)])  # nine are searched by a bound first
def test_nearest_tokens(B, D, dtype, metric):
    queries, table = random(B, D), random(400, D, seed=1).to(dtype)
    found, ids = ops.nearest_tokens(queries, table, 5, metric, backend="cpp")
    exact, limit = distances(queries, table, metric)
    close(found, exact.gather(1, ids), limit.gather(1, ids))
    close(found, exact.sort(-1).values[:, :5], limit.amax(-1, keepdim=True).expand(-1, 5))
    assert all(len(set(row)) == 5 for row in ids.tolist())


@every_isa
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("D", [5, 77, 768])
def test_residuals(D, dtype, target):
    predictions, targets = random(3, 7, D).to(dtype), random(3, D, seed=1).to(target)
    found = ops.residuals(predictions, targets, backend="cpp")
    p, t = predictions.double(), targets.double()
    exact = (p - t[:, None]).norm(dim=-1) / t.norm(dim=-1, keepdim=True)
    close(found, exact, rounded(D + 6) * exact)


@every_isa
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("D", [5, 77, 768])
def test_adam_step(D, clip):
    proxy, grad, mean, square = (random(4, D, seed=seed) for seed in range(4))
    square = square.square()
    step, active = torch.tensor([0, 1, 7, 20]), torch.tensor([True, True, False, True])
    lr, total, decay, beta1, beta2 = 0.1, 50, 0.01, 0.9, 0.999
    settings = {"lr": lr, "total_steps": total, "clip": clip, "weight_decay": decay, "betas": (beta1, beta2)}
    p, g, m, s = (t.double() for t in (proxy, grad, mean, square))
    shrink = 1.0 if clip is None else (clip / (g.norm(dim=-1, keepdim=True) + 1e-6)).clamp_max(1)
    size = g.abs() * shrink + decay * p.abs()  # of a gradient, and so on: what rounding errors are a share of
    size_m = torch.where(active[:, None], beta1 * m.abs() + (1 - beta1) * size, 0)
    size_s = torch.where(active[:, None], beta2 * s + (1 - beta2) * size.square(), 0)
    taken = step.double()[:, None]
    reference.adam_step(p, g, m, s, step.clone(), active, **settings)
    spread = (s / (1 - beta2 ** (taken + 1))).sqrt()
    rate = lr * (1 + torch.cos(math.pi * taken / total)) / 2
    move = rate * size_m / (1 - beta1 ** (taken + 1)) / spread

    ops.adam_step(proxy, grad, mean, square, step, active, backend="cpp", **settings)
    assert step.tolist() == [1, 2, 7, 21]
    close(mean, m, rounded(D + 12) * size_m)
    close(square, s, rounded(2 * D + 24) * size_s)
    close(proxy, p, rounded(D + 20) * move * (1 + size_s / s) + rounded(2) * p.abs())


@every_isa
@pytest.mark.parametrize("count", [1, 7, 1003])
def test_gelu_and_its_gradient(count):
    slope, cube = 2 * math.sqrt(2 / math.pi), 0.044715
    x, weight = (5 * random(count)).requires_grad_(), random(count, seed=1)
    exact = x.detach().double().requires_grad_()
    wanted = exact * torch.sigmoid(slope * (exact + cube * exact**3))
    (wanted_grad,) = torch.autograd.grad((wanted * weight).sum(), exact)
    out = gelu(x)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)

    at = exact.detach().clamp(-9.9, 9.9)
    power = slope * (at + cube * at**3)  # eight roundings of it are so many of its exponential
    s, times = torch.sigmoid(power), 8 * power.abs()
    inner = at.abs() * s * slope * (1 + 3 * cube * at.square())  # times 1 − s, which cancels
    limit = rounded(times + 16) * (s + inner * (1 - s)) + rounded(4) * inner
    close(out.detach(), wanted.detach(), rounded(times + 8) * wanted.detach().abs() + 1e-35)
    close(grad, wanted_grad, limit * weight.double().abs() + 1e-32)


def scores(x: Tensor, matrix: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, K] · matrix [K, N] + bias [N], and how far off each element may be."""
    x, matrix, bias = x.double(), matrix.double(), bias.double()
    return x @ matrix + bias, rounded(len(matrix) + 2) * (x.abs() @ matrix.abs() + bias.abs())


@every_isa
@pytest.mark.parametrize(("n", "K", "N"), [(4, 3, 5), (13, 77, 70), (64, 256, 48)])
def test_product(n, K, N):
    x, matrix, bias = random(n, K), random(K, N, seed=1), random(N, seed=2)
    close(ops.linear(x, matrix, bias, pack(matrix), backend="cpp"), *scores(x, matrix, bias))


@every_isa
@pytest.mark.parametrize(("n", "V", "K"), [(1, 2, 3), (13, 70, 77), (200, 333, 64)])
def test_best_two(n, V, K):
    x, matrix, bias = random(n, K), random(V, K, seed=1), random(V, seed=2)
    best_two = BestTwo(matrix)
    best_two._compiled = True  # in C++, where PyTorch might be faster, too
    ids, leads = best_two(x, bias)
    exact, limit = scores(x, matrix.T, bias)
    worst, top = limit.amax(-1), exact.topk(2, -1).values
    assert (exact.gather(1, ids[:, None])[:, 0] >= top[:, 0] - 2 * worst).all()
    close(leads, top[:, 0] - top[:, 1], 2 * worst + rounded(1) * leads.double())


@every_isa
@pytest.mark.parametrize(("n", "V", "K"), [(1, 2, 3), (13, 70, 77), (200, 333, 64)])
def test_best_two_by_a_sketch_that_leaves_nothing_out(n, V, K):
    x, matrix, bias = random(n, K), random(V, K, seed=1), random(V, seed=2)
    packed, ids, leads = pack(matrix.T), torch.empty(n, dtype=torch.long), torch.empty(n)
    rows = (x.data_ptr(), matrix.data_ptr(), bias.data_ptr())
    sketch = (x.data_ptr(), packed.data_ptr(), bias.data_ptr())
    C.best_two_by_sketch(sketch, (n, K, K), rows, (n, K, K), ids.data_ptr(), leads.data_ptr(), V, 1)
    exact, limit = scores(x, matrix.T, bias)
    padded = torch.nn.functional.pad(exact, (0, -V % 64), value=-torch.inf).view(n, -1, 64)
    worst, top = limit.amax(-1), padded.amax(1).topk(2, -1).values  # the best of every 64th column
    # Two may change places where one is off up and the other down; then the better is scored, off once more.
    assert (exact.gather(1, ids[:, None])[:, 0] >= top[:, 0] - 4 * worst).all()
    close(leads, top[:, 0] - top[:, 1], 6 * worst + rounded(1) * leads.double())


class Attention:
    """Queries of B lanes, each with a prefix, which see of their own N tokens what `own [N, N]` says; in float64."""

    def __init__(self, N: int, d: int, own: Tensor):
        B, Hq, Hkv, longest, self.scale = 3, 4, 2, 37, 0.2
        shapes = [(B, Hq, N, d), (B, Hkv, N, d), (B, Hkv, N, d), (B + 1, Hkv, longest, d), (B + 1, Hkv, longest, d)]
        self.given = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
        self.lengths, self.slots = torch.tensor([longest, 0, 20]), torch.tensor([2, 0, 3])
        self.q, self.k, self.v, *prefix = (t.double() for t in self.given)
        for t in (self.q, self.k, self.v):
            t.requires_grad_()
        self.keys, self.values = (
            torch.cat([before[self.slots], mine], 2).repeat_interleave(Hq // Hkv, 1)
            for before, mine in zip(prefix, (self.k, self.v), strict=True)
        )
        before = torch.arange(longest) < self.lengths[:, None]
        seen = torch.cat([before[:, None].expand(-1, N, -1), own.expand(B, -1, -1)], -1)[:, None]
        self.weights = (self.scale * self.q @ self.keys.mT).masked_fill(~seen, -torch.inf).softmax(-1)
        self.out = (self.weights @ self.values).transpose(1, 2)
        # A score's error is a share of the sum of its products, and the share by which it changes a weight; of a weight
        # there is its own and that of the sum of all.
        self.terms = longest + N
        products = self.scale * (self.q.abs() @ self.keys.mT.abs()).masked_fill(~seen, 0).amax().item()
        self.of_weights = 2 * math.expm1(2 * rounded(d + 9) * products) + rounded(2 * self.terms + 16)

    def limit(self) -> Tensor:
        return (self.of_weights * (self.weights @ self.values.abs()).transpose(1, 2)).detach()

    def limits_of_gradients(self, grad: Tensor, own: slice) -> list[Tensor]:
        """Of those by query, key and value from that by the output; own: a token's own places among the weights."""
        q, weights, keys, values = (t.detach() for t in (self.q, self.weights, self.keys, self.values))
        N, d = q.shape[2:]
        share = 2 * self.of_weights + rounded(d + 2 * self.terms + 16)
        grad = grad.double().transpose(1, 2).abs()
        to_weights = grad @ values.abs().mT
        to_scores = self.scale * weights * (to_weights + (weights * to_weights).sum(-1, keepdim=True))
        mine = torch.arange(N)
        of_key = to_scores[..., own][..., mine, mine, None] * q.abs()
        of_value = weights[..., own][..., mine, mine, None] * grad
        by_key, by_value = (t.unflatten(1, (self.k.shape[1], -1)).sum(2) for t in (of_key, of_value))
        return [share * t for t in (to_scores @ keys.abs(), by_key, by_value)]


@every_isa
@pytest.mark.parametrize(("N", "d"), [(1, 16), (17, 20), (40, 64)])
def test_draft_attention(N, d):
    case = Attention(N, d, torch.ones(N, N, dtype=torch.bool).tril())
    found = draft_attention.attention(*case.given, case.lengths, case.slots, scale=case.scale)
    close(found, case.out.detach(), case.limit())


@every_isa
@pytest.mark.parametrize(("N", "d"), [(1, 16), (3, 20), (5, 64)])
def test_fan_out_and_its_gradient(N, d):
    case = Attention(N, d, torch.eye(N, dtype=torch.bool))
    q, k, v = (t.clone().requires_grad_() for t in case.given[:3])
    found = fan_out_attention.attention(q, k, v, *case.given[3:], case.lengths, case.slots, scale=case.scale)
    close(found.detach(), case.out.detach(), case.limit())
    grad = random(*found.shape, seed=9)
    grads = torch.autograd.grad((found * grad).sum(), (q, k, v))
    wanted = torch.autograd.grad((case.out * grad).sum(), (case.q, case.k, case.v))
    limits = case.limits_of_gradients(grad, slice(-N, None))
    for ours, exact, limit in zip(grads, wanted, limits, strict=True):
        close(ours, exact, limit)
