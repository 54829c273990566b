"""`adam_step` is PyTorch's Adam, lane by lane at its own step, on every backend that runs here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invert_fast import ops

from ..limits import close
from .adam import sizes
from .inputs import backends, random

pytestmark = pytest.mark.numeric
STEPS = 12


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
def test_it_is_torchs_adam_lane_by_lane_at_its_own_step(backend, B, D, clip, weight_decay):
    settings = {"lr": 0.05, "total_steps": 20, "clip": clip, "weight_decay": weight_decay}
    start, grads = random(B, D), random(STEPS, B, D, seed=1)
    proxy, mean, square = start.clone(), torch.zeros(B, D), torch.zeros(B, D)
    step = torch.zeros(B, dtype=torch.long)
    plan = torch.rand(STEPS, B, generator=torch.Generator().manual_seed(2)) < 0.7
    scale = torch.zeros(B, D, dtype=torch.float64)
    for grad, active in zip(grads, plan, strict=True):
        scale += active[:, None] * sizes((proxy, grad, mean, square), step, **settings)[0]
        ops.adam_step(proxy, grad, mean, square, step, active, backend=backend, **settings)
    assert step.tolist() == plan.sum(0).tolist()
    for b in range(B):
        taken = [grad[b].double() for grad, active in zip(grads, plan, strict=True) if active[b]]
        wanted = torch_adam(start[b].double(), taken, **settings)
        close(proxy[b], wanted, scale=start[b].double().abs() + scale[b], terms=2 * D + 24)


def test_tables_that_do_not_fit_are_refused():
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
