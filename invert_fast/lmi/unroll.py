"""From a vector over a vocabulary to a row of pseudo-embeddings that an encoder reads (2311.13647, section 4).

    v  = log p − running mean                  padded with zeros to c·d entries, cut into c chunks of d
    e_i = MLP(W_i v_i)                         W_i of its own for each chunk, the MLP (d → b → d, GELU) shared

Several steps stand one after the other, so that the encoder reads n·c pseudo-embeddings; each (step, chunk) adds a
learned offset of its own, without which steps would be told apart by the encoder's relative positions only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RunningMean(nn.Module):
    """An exponential moving average of the vectors seen in training, `[steps, width]`: ema of each batch's mean.

    Begins at the first batch's mean, not at zero. Subtracted from what passes through.
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, steps: int, width: int, ema: float = 0.01):
        super().__init__()
        self.ema = ema
        self.register_buffer("mean", torch.zeros(steps, width))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, vectors: Tensor) -> Tensor:
        """`[B, steps, width]` less the mean; in training the batch enters the mean first."""
        if self.training:
            with torch.no_grad():
                now = vectors.mean(0)
                self.mean.lerp_(now, 1.0 if self.batches == 0 else self.ema)
                self.batches += 1
        return vectors - self.mean


class Unroll(nn.Module):
    """`[B, steps, width] → [B, steps · ⌈width/d⌉, d]`: chunks through their own matrices, then the shared MLP."""

    def __init__(self, steps: int, width: int, d: int, bottleneck: int, dropout: float = 0.0):
        super().__init__()
        self.d, self.chunks = d, -(-width // d)
        self.matrices = nn.Parameter(torch.randn(self.chunks, d, d) * d**-0.5)  # [chunk, in, out]
        self.mlp = nn.Sequential(nn.Linear(d, bottleneck), nn.GELU(), nn.Dropout(dropout), nn.Linear(bottleneck, d))
        self.place = nn.Parameter(torch.zeros(steps, self.chunks, d))

    def forward(self, vectors: Tensor) -> Tensor:
        padded = F.pad(vectors, (0, self.chunks * self.d - vectors.shape[-1]))
        chunks = padded.unflatten(-1, (self.chunks, self.d))
        mixed = torch.einsum("bsci,cio->bsco", chunks, self.matrices)
        return (self.mlp(mixed) + self.place).flatten(1, 2)


class TextRows(nn.Module):
    """The text-only baseline's input: ids of sampled tokens `[B, steps, 1] → [B, steps, d]`, an embedding each."""

    def __init__(self, vocab_size: int, d: int):
        super().__init__()
        self.table = nn.Embedding(vocab_size, d)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.table(vectors[..., 0].round().long())
