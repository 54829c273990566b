"""`residuals` are relative distances, of any precision, on every backend that runs here."""

from __future__ import annotations

import pytest
import torch

from invert_fast import ops

from ..limits import close
from .inputs import backends, random
from .residuals import check

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("backend", backends("residuals"))
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 8, 64), (3, 7, 33), (4, 0, 16), (0, 3, 8)], ids=str)
def test_they_are_relative_distances(shape, backend):
    predictions, targets = random(*shape), random(shape[0], shape[2], seed=1)
    oracle = torch.empty(shape[:2], dtype=torch.float64)
    for b in range(shape[0]):
        for c in range(shape[1]):
            difference = predictions[b, c].double() - targets[b].double()
            oracle[b, c] = difference.square().sum().sqrt() / targets[b].double().square().sum().sqrt()
    found = ops.residuals(predictions, targets, backend=backend)
    assert found.dtype == torch.float32
    close(found, oracle, scale=oracle, terms=shape[2] + 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_of_any_precision_and_with_gradients(dtype):
    predictions, targets = random(2, 3, 16, dtype=dtype), random(2, 16, seed=1)
    check(ops.residuals(predictions, targets), predictions.float(), targets)
    leaf = predictions.float().requires_grad_()
    assert ops.residuals(leaf, targets).requires_grad
