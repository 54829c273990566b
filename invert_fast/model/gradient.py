"""Loss and gradient of a search, the one place where they are written: MSE(f(e), h) and its derivative by e."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .precision import products


def loss_and_gradient(
    run: Callable[[Tensor], Tensor], value: Tensor, target: Tensor, dtype: torch.dtype, compute: str = "float32"
) -> tuple[Tensor, Tensor]:
    """ℒ = ‖f(e) − h‖² / D `[b]` and ∂ℒ/∂e `[b, D_e]`, fp32 (2607.00852, Algorithm 1, lines 5 and 6).

    run: f, `[b, 1, D_e] → [b, 1, D]`; value: e `[b, D_e]`; target: h `[b, D]`; dtype: precision of the pass; compute:
    of its products, see `precision.products`. Nothing is read back from the device.
    """
    with torch.enable_grad():
        embeds = value.detach().to(dtype).requires_grad_()
        hidden = run(embeds[:, None])[:, 0]
    error = hidden.detach().float() - target
    with products(embeds.device, compute):
        (grad,) = torch.autograd.grad(hidden, embeds, (error * (2 / error.shape[1])).to(hidden.dtype))
    return error.square().mean(-1), grad.float()
