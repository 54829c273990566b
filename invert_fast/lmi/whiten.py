"""Log-probs of D+k tokens are a linear image of the D-wide hidden state, up to one constant (2506.17090).

So D numbers hold all that they say. The map here is found from vectors alone, without the target's weights: centre
each vector over its tokens (which removes the constant), then principal components scaled to unit variance. The scale
matters more than the width: what a state says of early tokens lies in directions of little variance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_KEEP = 1e-9  # variances below this share of the largest are rounding of fp32 log-probs


class Whiten(nn.Module):
    """`[..., width] → [..., rank]`: centred over tokens, less the mean, in principal components of unit variance."""

    mean: Tensor
    project: Tensor

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("project", torch.zeros(width, rank))

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """From a sample `[n, width]`, in float64. Components that only round are left at zero."""
        x = vectors.double()
        x = x - x.mean(-1, keepdim=True)
        mean = x.mean(0)
        covariance = (x - mean).T @ (x - mean) / max(1, len(x) - 1)
        variance, axes = torch.linalg.eigh(covariance)
        rank = self.project.shape[1]
        variance, axes = variance.flip(0)[:rank], axes.flip(1)[:, :rank]
        axes = axes * axes.sum(0).sign().masked_fill(axes.sum(0) == 0, 1)  # eigenvectors have no sign of their own
        scale = torch.where(variance > _KEEP * variance[0], variance.clamp_min(1e-300).rsqrt(), 0.0)
        self.mean.copy_(mean)
        self.project.copy_(axes * scale)

    def forward(self, vectors: Tensor) -> Tensor:
        centred = vectors - vectors.mean(-1, keepdim=True)
        return (centred - self.mean) @ self.project
