"""`adam_step` in Triton: all lanes in one launch, a program a lane, each at a step count of its own."""

# pyright takes the launch of a kernel for a call of the function that describes it
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def step_lane(
    proxy,
    grad,
    exp_avg,
    exp_avg_sq,
    steps,
    active,
    proxy_stride,
    grad_stride,
    exp_avg_stride,
    exp_avg_sq_stride,
    lr,
    total_steps,
    clip,
    weight_decay,
    beta1,
    beta2,
    rest1,
    rest2,
    log_beta1,
    log_beta2,
    eps,
    CLIP: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
):
    """rest is 1 − beta and log_beta is log(beta), both rounded once, from the double."""
    b = tl.program_id(0).to(tl.int64)
    if tl.load(active + b) != 0:
        done = tl.load(steps + b)
        shrink = 1.0
        if CLIP:
            squares = tl.zeros((BD,), tl.float32)
            for start in range(0, D, BD):
                d = start + tl.arange(0, BD)
                g = tl.load(grad + b * grad_stride + d, mask=d < D, other=0.0)
                squares += g * g
            norm = tl.sqrt(tl.sum(squares, 0))
            shrink = tl.minimum(clip / (norm + 1e-6), 1.0)
            shrink = tl.where(norm == norm, shrink, norm)  # a NaN stays one, in this lane
        # (1 + cos πx) / 2 = cos²(πx/2), which loses no digits where the schedule ends
        fall = tl.cos(tl.minimum(done.to(tl.float32) / total_steps, 1.0) * HALF_PI)
        rate = lr * fall * fall
        taken = (done + 1).to(tl.float32)
        bias1, bias2 = one_less_exp(taken * log_beta1), one_less_exp(taken * log_beta2)
        for start in range(0, D, BD):
            d = start + tl.arange(0, BD)
            there = d < D
            x = tl.load(proxy + b * proxy_stride + d, mask=there, other=0.0)
            g = tl.load(grad + b * grad_stride + d, mask=there, other=0.0) * shrink
            g += weight_decay * x
            m = beta1 * tl.load(exp_avg + b * exp_avg_stride + d, mask=there, other=0.0) + rest1 * g
            s = beta2 * tl.load(exp_avg_sq + b * exp_avg_sq_stride + d, mask=there, other=0.0) + rest2 * g * g
            tl.store(exp_avg + b * exp_avg_stride + d, m, mask=there)
            tl.store(exp_avg_sq + b * exp_avg_sq_stride + d, s, mask=there)
            tl.store(proxy + b * proxy_stride + d, x - rate * (m / bias1) / (tl.sqrt(s / bias2) + eps), mask=there)
        tl.debug_barrier()  # every warp has read the count before one of them raises it
        tl.store(steps + b, done + 1)


@triton.jit
def one_less_exp(x):
    """1 − eˣ for x ≤ 0, to full precision near 0 too, where it is a difference of nearly equal numbers."""
    series = -x * (1.0 + x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120)))))
    return tl.where(x > -0.25, series, 1.0 - tl.exp(x))


def adam_step(
    proxy: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    active: Tensor,
    *,
    lr: float,
    total_steps: int,
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """Contract of `reference.adam_step`."""
    B, D = proxy.shape
    if B == 0:
        return
    beta1, beta2 = betas
    step_lane[(B,)](
        proxy,
        grad,
        exp_avg,
        exp_avg_sq,
        step,
        active.view(torch.uint8),
        *(table.stride(0) for table in (proxy, grad, exp_avg, exp_avg_sq)),
        lr,
        float(total_steps),
        0.0 if clip is None else clip,
        float(weight_decay),
        beta1,
        beta2,
        1 - beta1,
        1 - beta2,
        math.log(beta1),
        math.log(beta2),
        eps,
        CLIP=clip is not None,
        D=D,
        BD=1024,
        num_warps=4,
    )
