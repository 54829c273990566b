"""The published loops, what of theirs is brief enough for a test, and states that no token has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from invert_fast.baselines import continuous_loop, sipit, vma

METHODS = {"sipit": sipit.invert, "continuous loop": continuous_loop.invert, "vma": vma.invert}
# A tenth of the steps and a wider window: the paper's own presets take seconds a token.
BRIEF = continuous_loop.Preset(60, 1000)
SMALL = 110  # a vocabulary that SIPIT goes through twice past its snap


@dataclass
class Log:
    """Last embedding of every forward pass: of proxies (with gradient) and of candidates (without)."""

    proxies: list[Tensor] = field(default_factory=list)
    candidates: list[Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def tokens(self, model: Any) -> list[int]:
        """Ids of the candidates, in the order in which they were run."""
        table = model.get_input_embeddings().weight
        return [int((table - embed).norm(dim=1).argmin()) for embed in self.candidates]


def unreachable(model, length: int = 1, seed: int = 0) -> Tensor:
    """States that no token has."""
    return torch.randn(length, model.config.hidden_size, generator=torch.Generator().manual_seed(seed))


def brief(method: str) -> dict[str, Any]:
    return {"preset": BRIEF} if method == "continuous loop" else {}


def by_rank(values: Tensor) -> list[int]:
    return values.argsort(stable=True).tolist()
