"""The compiled ops are told addresses alone: numbers of another type never reach them, whatever the caller has set."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import pytest
import torch

from invert_fast import ops
from invert_fast.ops import draft_attention, fan_out_attention, native
from invert_fast.ops.best_two import BestTwo
from invert_fast.ops.linear import linear, pack

from .inputs import random

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(
        native._C is None, reason="invert_fast._C was not built: there is nothing to be told an address"
    ),
]
FLOATS = (torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture(params=FLOATS, ids=str)
def default_dtype(request):
    """What many set before they load a model: then `torch.empty(n)` has half or twice as many bytes."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def test_buffers_do_not_follow_the_default_type(default_dtype):
    x, matrix = random(40, 64).float(), random(64, 48, seed=1).float()
    assert pack(matrix).dtype == torch.float32
    torch.testing.assert_close(linear(x, matrix, backend="cpp"), x @ matrix, atol=1e-4, rtol=1e-5)
    distances, ids = ops.nearest_tokens(x, random(500, 64, seed=2).float(), 7)
    assert (distances.dtype, ids.dtype) == (torch.float32, torch.long)
    for tokens in (300, 5000):  # without a sketch, and with one
        table = random(tokens, 64, seed=3)
        best, lead = BestTwo(table, torch.eye(64, dtype=torch.float32))(
            x, torch.zeros(tokens, dtype=torch.float32), 1.0
        )
        assert (best.dtype, lead.dtype) == (torch.long, torch.float32)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mixed_types_are_refused(dtype):
    x, matrix = random(40, 64), random(64, 48, seed=1)
    with pytest.raises(ValueError, match=f"{dtype}, expected torch.float32"):
        linear(x, matrix, random(48).to(dtype), backend="cpp")
    q, k, v = (random(2, 4, 3, 16, seed=i) for i in range(3))
    for attention in (fan_out_attention.attention, draft_attention.attention):
        for mixed in ((q, k.to(dtype), v), (q, k, v.to(dtype))):
            with pytest.raises(ValueError, match=r"expected torch\.float32"):
                attention(*mixed, None, None, None, None, scale=1.0)
    if dtype != torch.bfloat16:
        with pytest.raises(ValueError, match=r"expected torch\.float32 or torch\.bfloat16"):
            ops.residuals(random(2, 3, 8).to(dtype), random(2, 8), backend="cpp")


@pytest.mark.parametrize("module", ["adam_step", "best_two", "draft_attention", "fan_out_attention", "gelu", "linear",
                                    "nearest_tokens", "residuals"])  # fmt: skip
def test_no_address_is_taken_unseen(module):
    """By `native.address`, which looks at the type; the buffers of CUDA kernels are of a type that stands beside."""
    source = inspect.getsource(import_module(f"invert_fast.ops.{module}"))
    taken = [line.strip() for line in source.splitlines() if re.search(r"\.data_ptr\(\)", line)]
    assert [line for line in taken if "ranks" not in line and not line.startswith("_cuda.")] == []
