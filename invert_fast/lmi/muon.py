"""Muon for the inverter's matrices (Jordan et al. 2024): momentum, orthogonalised by five Newton–Schulz steps.

torch's own runs them in bf16, which processors without bf16 products do a hundred times slower; here they run in the
weights' dtype, and on stacks of matrices `[chunks, d, d]`, of which each is orthogonalised by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonal(gradient: Tensor) -> Tensor:
    """The nearest orthogonal matrices to `[..., m, n]`, roughly: singular values between 0.7 and 1.2."""
    x = gradient / (gradient.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Updates of RMS 0.2, as AdamW's are, so that both take the same learning rate."""

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(average, group["momentum"]))
                parameter.add_(update, alpha=-0.2 * group["lr"] * max(parameter.shape[-2:]) ** 0.5)
