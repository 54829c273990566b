"""`prefix_attention` equals attention over whole sequences, with gradients, on every backend that runs here."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from invert_fast import ops

from ..limits import close
from .attention import CASES, Sizes, case, expected, sizes, with_gradients
from .inputs import backends, random

pytestmark = pytest.mark.numeric
LOW = 5  # roundings where all is stored in low precision: scaled query, logit, weight, two parts of the sum


WINDOWS, SOFTCAPS = (None, 1, 3, 100), (None, 2.0)


@functools.cache
def oracle(name: str, causal: bool, window: int | None, softcap: float | None) -> tuple[tuple, dict, Tensor, Sizes]:
    """Arguments, options, answer and its sizes: the same for every backend."""
    arguments = case(**CASES[name])
    options = {"scale": 0.3, "causal": causal, "window": window, "softcap": softcap}
    return arguments, options, expected(*arguments, **options), sizes(*arguments, **options)


@pytest.mark.parametrize("backend", backends("prefix_attention"))
@pytest.mark.parametrize("causal", [True, False], ids=["draft", "fan-out"])
@pytest.mark.parametrize("name", CASES)
def test_it_equals_attention_over_whole_sequences(name, causal, backend):
    """With every window and cap; in Triton's interpreter half of the pairs, the other half in the next case."""
    pairs = [*itertools.product(WINDOWS, SOFTCAPS)]
    if backend == "triton":
        turn = [*CASES].index(name) + causal
        pairs = [(w, c) for w, c in pairs if (WINDOWS.index(w) + SOFTCAPS.index(c) + turn) % 2]
    for window, softcap in pairs:
        arguments, options, wanted, size = oracle(name, causal, window, softcap)
        found = ops.prefix_attention(*arguments, **options, backend=backend)
        assert found.dtype == torch.float32
        try:
            close(found, wanted, scale=size.out, terms=size.terms)
        except AssertionError as error:
            error.add_note(f"with {options}")
            raise


@pytest.mark.parametrize("backend", backends("prefix_attention"))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_in_low_precision(dtype, backend):
    arguments = case(**CASES["grouped heads"], dtype=dtype)
    options = {"scale": 0.3, "causal": True, "window": None, "softcap": None}
    found = ops.prefix_attention(*arguments, **options, backend=backend)
    assert found.dtype == dtype
    size = sizes(*arguments, **options)
    close(found, expected(*arguments, **options), scale=size.out, terms=LOW, computed=dtype)


@pytest.mark.parametrize("backend", backends("prefix_attention"))
@pytest.mark.parametrize("causal", [True, False], ids=["draft", "fan-out"])
def test_logits_of_hundreds_are_not_rounded(causal, backend):
    """Keys with a large bias, as some families have them: it is the same for all keys, and cancels."""
    query, key, value, prefix_key, *rest = case(**CASES["grouped heads"], dtype=torch.bfloat16)
    options = {"scale": 1.0, "causal": causal, "window": None, "softcap": None}
    query[..., 0], key[..., 0], prefix_key[..., 0] = 16.0, 32.0, 32.0
    found = ops.prefix_attention(query, key, value, prefix_key, *rest, **options, backend=backend)
    for keys in (key, prefix_key):
        keys[..., 0] = 0.0
    arguments = (query, key, value, prefix_key, *rest)
    size = sizes(*arguments, **options)
    close(found, expected(*arguments, **options), scale=size.out, terms=LOW, computed=torch.bfloat16)


@given(st.data())
def test_at_any_shape(data):
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
    wanted, size = expected(*arguments, **options), sizes(*arguments, **options)
    for backend in ("reference", "fused"):
        found = ops.prefix_attention(*arguments, **options, backend=backend)
        close(found, wanted, scale=size.out, terms=size.terms)


@pytest.mark.parametrize("backend", backends("prefix_attention"))
@pytest.mark.parametrize("causal", [True, False], ids=["draft", "fan-out"])
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_flow_to_queries_keys_and_values(causal, window, backend):
    arguments = case(**CASES["grouped heads"])
    options = {"scale": 0.3, "causal": causal, "window": window, "softcap": None}
    grad = random(3, 4, 6, 8, seed=5)
    found = with_gradients(lambda *a, **k: ops.prefix_attention(*a, **k, backend=backend), arguments, grad, **options)
    doubles = tuple(t.double() if t is not None and t.is_floating_point() else t for t in arguments)
    wanted = with_gradients(expected, doubles, grad.double(), **options)
    size = sizes(*arguments, **options, grad=grad)
    for ours, theirs, scale in zip(found, wanted, size[:4], strict=True):
        close(ours, theirs, scale=scale, terms=size.terms)


def test_heads_and_lengths_that_do_not_fit_are_refused():
    q, k, v, *rest = case(heads=2)
    with pytest.raises(ValueError, match="multiple of Hkv"):
        ops.prefix_attention(q[:, :1], k, v, *rest, scale=1.0, causal=True)
    with pytest.raises(ValueError, match="multiple of Hkv"):
        ops.prefix_attention(q[:, :, :2], k, v, *rest, scale=1.0, causal=True)
