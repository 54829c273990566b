"""Attention to the last rows alone, as the learned lens has it: in blocks and not, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from invert_fast.ops import prefix_attention

from ..limits import close
from .attention import expected, sizes, with_gradients
from .inputs import backends, random

pytestmark = pytest.mark.numeric
WINDOW = 64


@pytest.mark.parametrize("backend", backends("prefix_attention"))
@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 128, 130, 300])
def test_rows_attend_to_the_last_rows_alone(length, backend):
    """Every backend, against the loops."""
    if backend == "triton" and length > WINDOW + 1:
        pytest.skip("a long text takes Triton's interpreter a minute, and it has no blocks to get wrong")
    q, k, v = (random(2, 3, length, 16, seed=i) for i in range(3))
    arguments, options = (q, k, v, None, None, None, None), {"scale": 0.25, "causal": True, "window": WINDOW}
    grad = random(2, length, 3, 16, seed=3)
    found = with_gradients(lambda *a, **o: prefix_attention(*a, **o, backend=backend), arguments, grad, **options)
    doubles = (*(t.double() for t in (q, k, v)), *arguments[3:])
    wanted = with_gradients(expected, doubles, grad, **options)
    size = sizes(*arguments, **options, grad=grad)
    for ours, theirs, scale in zip(found, wanted, size[:4], strict=True):
        close(ours, theirs, scale=scale, terms=size.terms)
    with torch.no_grad():  # a draft, which may take another way
        close(prefix_attention(*arguments, **options, backend=backend), wanted[0], scale=size.out, terms=size.terms)
