"""What a beam search has tried at a position, and tables of tokens, a row a hypothesis."""

from __future__ import annotations

import torch
from torch import Tensor

from .hypotheses import UNTRIED


def shares_of(expected: Tensor, ids: Tensor) -> Tensor:
    """`expected [n, V]` of tokens `ids [n, C]`, −∞ for none."""
    return expected.gather(1, ids.clamp_min(0)).masked_fill(ids < 0, float("-inf"))


def once(ids: Tensor) -> Tensor:
    """`ids [n, C]` with UNTRIED in place of what stands in its row before."""
    before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril(-1)
    return ids.masked_fill(((ids[:, :, None] == ids[:, None]) & before).any(-1), UNTRIED)


def leading(ids: Tensor) -> Tensor:
    """`ids [n, C]` in their order, UNTRIED behind them."""
    return ids.gather(1, (ids < 0).byte().argsort(dim=1, stable=True))


def columns_of(ids: Tensor) -> Tensor:
    """The columns of `ids [n, C]` that have a token, UNTRIED for the others."""
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids).masked_fill(ids < 0, UNTRIED)


class Found:
    """ids, joint, states `[n, C]`: of what was tried; untried `[n]`: log share of all else, as expected."""

    def __init__(self, ids: Tensor, joint: Tensor, states: Tensor, untried: Tensor):
        self.ids, self.joint, self.states, self.untried = ids, joint, states, untried
