"""The limits themselves: wide enough for any order of a sum, and too narrow for a kernel that is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from .limits import average, close, limit, share
from .ops import attention
from .ops.adam import check as check_adam
from .ops.distances import check as check_nearest
from .ops.inputs import METRICS, random
from .ops.residuals import check as check_residuals
from .ops.scores import check as check_best_two

pytestmark = pytest.mark.numeric
WIDTHS = (64, 256, 768, 4096)  # of models
widths = pytest.mark.parametrize("n", WIDTHS)


def summed(terms: Tensor, order: str) -> Tensor:
    """fp32 sums of `terms [m, n]`, in an order that some kernel has."""
    if order == "pairs":
        while terms.shape[1] > 1:
            terms = torch.nn.functional.pad(terms, (0, terms.shape[1] % 2))
            terms = terms[:, ::2] + terms[:, 1::2]
        return terms[:, 0]
    if order == "blocks of 16":
        return summed(torch.stack([summed(part, "forwards") for part in terms.split(16, 1)], 1), "forwards")
    if order == "16 lanes":
        return summed(torch.stack([summed(terms[:, lane::16], "forwards") for lane in range(16)], 1), "pairs")
    columns = terms.flip(1) if order == "backwards" else terms
    total = torch.zeros(len(terms))
    for column in columns.T:
        total = total + column
    return total


@widths
@pytest.mark.parametrize("sign", ["either", "one"])
@pytest.mark.parametrize("order", ["forwards", "backwards", "pairs", "blocks of 16", "16 lanes"])
def test_any_order_of_a_sum_is_within_the_limit(n, sign, order):
    terms = random(200, n) if sign == "either" else random(200, n).abs()
    close(summed(terms, order), terms.double().sum(1), scale=terms.abs().double().sum(1), terms=n)
    if sign == "either":
        off = (summed(terms, order).double() - terms.double().sum(1)).abs().mean()
        assert off <= average(terms.square().sum(1), n)


def sums(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and a matrix, their product and its scale."""
    x, matrix = random(16, n), random(n, 32, seed=1)
    return x, matrix, x.double() @ matrix.double(), x.double().abs() @ matrix.double().abs()


FAULTS = {
    "a term left out": lambda x, m: x[:, 1:] @ m[1:],
    "the last vector left out": lambda x, m: x[:, :-8] @ m[:-8],
    "a term twice": lambda x, m: x @ m + x[:, :1] * m[:1],
    "rows rounded to bf16": lambda x, m: x.bfloat16().float() @ m,
    "the answer rounded to bf16": lambda x, m: (x @ m).bfloat16().float(),
    "the matrix rounded to fp16": lambda x, m: x @ m.half().float(),
    "halves added up in bf16": lambda x, m: (
        (x[:, ::2] @ m[::2]).bfloat16() + (x[:, 1::2] @ m[1::2]).bfloat16()
    ).float(),
    "columns in another order": lambda x, m: (x @ m)[:, torch.arange(32) ^ 1],
}


@widths
@pytest.mark.parametrize("fault", FAULTS)
def test_a_product_that_is_wrong_exceeds_its_limit(n, fault):
    x, matrix, wanted, scale = sums(n)
    close(x @ matrix, wanted, scale=scale, terms=n)
    with pytest.raises(AssertionError, match="numbers are off, worst at"):
        close(FAULTS[fault](x, matrix), wanted, scale=scale, terms=n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_product_in_low_precision_may_be_rounded_once_and_no_term_left_out(dtype):
    x, matrix, _, _ = sums(256)
    x, matrix = x.to(dtype).float(), matrix.to(dtype).float()
    wanted, scale = x.double() @ matrix.double(), x.double().abs() @ matrix.double().abs()
    close((x @ matrix).to(dtype), wanted, scale=scale, terms=256)
    for wrong in (FAULTS["a term left out"](x, matrix).to(dtype), (x @ matrix).to(dtype) * 1.01):
        with pytest.raises(AssertionError, match="numbers are off"):
            close(wrong, wanted, scale=scale, terms=256)


ATTENTION = {
    "a key left out": lambda w, v: w[..., 1:] @ v[..., 1:, :],
    "a key too many": lambda w, v: w @ v + w[..., -1:] * v[..., -1:, :],
    "weights rounded to bf16": lambda w, v: w.bfloat16().float() @ v,
    "values rounded to bf16": lambda w, v: w @ v.bfloat16().float(),
    "weights not divided by their sum": lambda w, v: (w * 1.001) @ v,
}


@pytest.mark.parametrize("fault", ATTENTION)
@pytest.mark.parametrize(("length", "d"), [(8, 8), (64, 64), (300, 64)])
def test_an_attention_that_is_wrong_exceeds_its_limit(length, d, fault):
    q, k, v = (random(1, 2, length, d, seed=i) for i in range(3))
    arguments, options = (q, k, v, None, None, None, None), {"scale": d**-0.5, "causal": True}
    size, wanted = attention.sizes(*arguments, **options), attention.expected(*arguments, **options)
    hidden = torch.ones(length, length).triu(1).bool()
    weights = torch.softmax((q @ k.transpose(2, 3) * d**-0.5).masked_fill(hidden, -torch.inf), -1)
    close((weights @ v).transpose(1, 2), wanted, scale=size.out, terms=size.terms)
    with pytest.raises(AssertionError, match="numbers are off"):
        close(ATTENTION[fault](weights, v).transpose(1, 2), wanted, scale=size.out, terms=size.terms)


@pytest.mark.parametrize("fault", ["one key too many", "bf16"])
def test_a_gradient_that_is_wrong_exceeds_its_limit(fault):
    arguments = attention.case(**attention.CASES["grouped heads"])
    options, grad = {"scale": 0.3, "causal": False}, random(3, 4, 6, 8, seed=5)
    right = attention.with_gradients(attention.expected, arguments, grad, **options)
    size = attention.sizes(*arguments, **options, grad=grad)
    if fault == "bf16":
        low = tuple(t.bfloat16() if t.is_floating_point() else t for t in arguments[:5]) + arguments[5:]
        wrong = attention.with_gradients(attention.expected, low, grad, **options)
    else:
        longer = (*arguments[:5], arguments[5] + 1, arguments[6])
        wrong = attention.with_gradients(attention.expected, longer, grad, **options)
    for ours, theirs, scale in zip(wrong, right, size[:4], strict=True):
        with pytest.raises(AssertionError, match="numbers are off"):
            close(ours, theirs.double(), scale=scale, terms=size.terms)


@widths
def test_distances_that_are_wrong_exceed_their_limits(n):
    predictions, targets = random(3, 5, n), random(3, n, seed=1)
    for wrong in ((predictions[..., 1:], targets[:, 1:]), (predictions.bfloat16().float(), targets)):
        found = (wrong[0] - wrong[1][:, None]).norm(dim=-1) / wrong[1].norm(dim=-1)[:, None]
        with pytest.raises(AssertionError, match="numbers are off"):
            check_residuals(found, predictions, targets)


@widths
@pytest.mark.parametrize("metric", METRICS)
def test_nearest_tokens_that_are_wrong_exceed_their_limits(n, metric):
    from invert_fast.kernels import reference

    queries, table = random(6, n), random(200, n, seed=1)
    check_nearest(reference.nearest_tokens(queries, table, 20, metric), queries, table, metric)
    wrongs = [(queries[:, 1:], table[:, 1:]), (queries, table.bfloat16())]
    for q, e in wrongs:
        with pytest.raises(AssertionError):
            check_nearest(reference.nearest_tokens(q, e, 20, metric), queries, table, metric)
    values, ids = reference.nearest_tokens(queries, table, 20, metric)
    with pytest.raises(AssertionError):
        check_nearest((values, ids.roll(1, -1)), queries, table, metric)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_best_two_that_are_wrong_exceed_their_limits(n):
    from invert_fast.kernels import reference

    x, matrix, bias = random(40, n), random(500, n, seed=1), random(500, seed=2)
    ids, leads = reference.best_two(x, matrix, bias)
    check_best_two((ids, leads), x, matrix, bias)
    for wrong in (
        reference.best_two(x[:, 1:], matrix[:, 1:], bias),
        reference.best_two(x, matrix.bfloat16().float(), bias),
        (ids, leads + 1e-2),
        ((ids + 1) % 500, leads),
    ):
        with pytest.raises(AssertionError):
            check_best_two(wrong, x, matrix, bias)


@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": 0.0},
        {"clip": None},
        {"lr": 0.0501},
        {"total_steps": 1001},
        {"betas": (0.9, 0.998)},
        {"eps": 1e-3},
    ],
    ids=str,
)
@pytest.mark.parametrize("D", [33, 768])
def test_an_adam_step_that_is_wrong_exceeds_its_limits(D, change):
    from invert_fast.kernels import reference

    settings = {"lr": 0.05, "total_steps": 1000, "clip": 0.5, "weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}
    tables = [random(4, D, seed=i) for i in range(4)]
    tables[3].square_()
    steps, active = torch.tensor([0, 3, 400, 900]), torch.ones(4).bool()
    wanted, right, wrong = [t.double() for t in tables], [t.clone() for t in tables], [t.clone() for t in tables]
    for given, changed in ((wanted, {}), (right, {}), (wrong, change)):
        reference.adam_step(*given, steps.clone(), active, **{**settings, **changed})
    answers = [(given[0], *given[2:]) for given in (right, wrong, wanted)]
    check_adam(answers[0], answers[2], tables, steps, **settings)
    with pytest.raises(AssertionError, match="numbers are off"):
        check_adam(answers[1], answers[2], tables, steps, **settings)


def test_the_message_names_the_worst_element():
    wanted = torch.ones(2, 3, dtype=torch.float64)
    found = wanted.float()
    found[0, 1], found[1, 2] = 1.001, 1.5
    with pytest.raises(AssertionError) as error:
        close(found, wanted, scale=2.0, terms=4)
    said = str(error.value)
    assert said.startswith(
        "2 of 6 numbers are off, worst at [1, 2]: got 1.5, wanted 1.0, which is 0.5 apart where 5.36e-07"
    )
    assert "4 roundings in torch.float32, written in torch.float32" in said
    with pytest.raises(AssertionError, match=r"worst at \[\]: got 2.0, wanted 1.0"):
        close(torch.tensor(2.0), torch.tensor(1.0).double(), scale=1.0, terms=1)
    with pytest.raises(AssertionError, match=r"got \[3\], wanted \[2\]"):
        close(torch.ones(3), torch.ones(2), scale=1.0, terms=1)


def test_what_is_no_number_is_close_to_nothing_and_infinities_to_themselves():
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
    close(bad[1:], bad[1:].double(), scale=1.0, terms=1)
    close(bad, bad.double(), scale=1.0, terms=1, equal_nan=True)
    for ours, theirs, scale in [
        (bad, bad, 1.0),
        (bad[1:], -bad[1:], 1.0),
        (bad[:1], bad[3:], 1.0),
        (bad[3:], bad[:1], 1.0),
    ]:
        with pytest.raises(AssertionError):
            close(ours, theirs.double(), scale=scale, terms=1)
    with pytest.raises(AssertionError):
        close(torch.ones(1), torch.zeros(1).double(), scale=torch.inf, terms=1)


def test_a_wanted_that_was_rounded_itself_is_as_far_off():
    exact = torch.full((3,), 2.0, dtype=torch.float64)
    assert torch.equal(limit(exact.float(), scale=4.0, terms=9), 2 * limit(exact, scale=4.0, terms=9))
    assert share(9) == 9 * 2.0**-24
    assert share(900) == 90 * 2.0**-24
    assert np.isclose(share(4, torch.bfloat16), 4 / 256)
