"""A start for a small inverter: closed-form estimates of the prompt's tokens, as further pseudo-embeddings.

Ridge regression from the vectors of all steps to rows of the body's embedding table: one estimate for each of the
first K positions of the prompt, one for each of the last K. Fitted in seconds, fixed afterwards. They hold what is
linear in the vectors (much of the first and the last token), so that the encoder-decoder learns the rest. Not part of
2311.13647, whose T5 is pretrained and trained on millions of prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RIDGE = 0.02  # of the mean variance of the inputs


class Estimates(nn.Module):
    """`[B, steps, width] → [B, 2·count, d]`: rows 0…K−1 are positions from the start, K…2K−1 from the end."""

    project: Tensor
    constant: Tensor

    def __init__(self, steps: int, width: int, d: int, count: int):
        super().__init__()
        self.count, self.d = count, d
        self.register_buffer("project", torch.zeros(steps * width, 2 * count * d))
        self.register_buffer("constant", torch.zeros(2 * count * d))
        self.place = nn.Parameter(torch.zeros(2 * count, d))

    @torch.no_grad()
    def fit(self, vectors: Tensor, prompts: list[list[int]], table: Tensor) -> None:
        """vectors `[n, steps, width]` as `forward` gets them; prompts: ids of the body; table `[V, d]`: its embedding.

        Positions that too few prompts have are left at zero.
        """
        x = vectors.flatten(1)
        self.project.zero_()
        self.constant.zero_()
        for row in range(2 * self.count):
            at = row if row < self.count else self.count - 1 - row  # 0, 1, … then −1, −2, …
            need = at + 1 if at >= 0 else -at
            chosen = torch.tensor([i for i, ids in enumerate(prompts) if len(ids) >= need], dtype=torch.long)
            if len(chosen) < 16:
                continue
            y = table[torch.tensor([prompts[i][at] for i in chosen.tolist()])]
            inputs = x if len(chosen) == len(x) else x[chosen]
            mean, offset = inputs.mean(0), y.mean(0)
            gram = inputs.T @ inputs - len(chosen) * torch.outer(mean, mean)
            cross = inputs.T @ (y - offset)  # y − offset sums to zero: centring the inputs would change nothing
            gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-6)
            solved = torch.linalg.solve(gram, cross)
            part = slice(row * self.d, (row + 1) * self.d)
            self.project[:, part], self.constant[part] = solved, offset - mean @ solved

    def forward(self, vectors: Tensor) -> Tensor:
        rows = torch.addmm(self.constant, vectors.flatten(1), self.project)
        return rows.unflatten(1, (2 * self.count, self.d)) + self.place
