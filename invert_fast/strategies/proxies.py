"""A proxy embedding a lane and its gradient: what the two gradient modes share.

All lanes go through one forward and one backward pass a step; a lane's start follows from its target row and the seed
alone, so that batches, shards and the order of a file change nothing.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..engine.protocol import Context
from ..model.cuda_graph import Advance, GraphedSteps
from ..model.lanes import Held
from ..model.precision import COMPUTE
from ..model.transfer import sent_one, told
from ..types import InputError
from .prior import NextTokenPrior

INITS = ("zeros", "token", "gaussian", "prior")
_PRIORS_AT_ONCE = 256  # `[b, V]` scores are held for so many lanes at most


class Proxies:
    """State of the optimisation of every lane. Lanes are named on the host, and rows of these tables by `at`.

    value, exp_avg, exp_avg_sq `[S, D_e]` fp32: proxy and Adam moments; step `[S]`: steps taken at this position: beside
    the model; position `[S]`: the position they belong to, −1 for none yet. search_dtype: precision of the passes that
    gradients are taken of (None: the model's); what is verified is verified in the model's own, whatever this is.
    """

    def __init__(self, context: Context, init: str, seed: int, search_dtype: str | None = None):
        if init not in INITS:
            raise InputError(f"init '{init}' is unknown, expected one of {', '.join(INITS)}")
        if search_dtype not in (None, *COMPUTE):
            raise InputError(f"search_dtype '{search_dtype}' is unknown, expected one of {', '.join(COMPUTE)}")
        self.context, self.init, self.seed = context, init, seed
        self.dtype = torch.bfloat16 if search_dtype == "bfloat16" else context.decoder.dtype
        self.compute = "tf32" if search_dtype == "tf32" else "float32"
        self.embedding = context.vocabulary.embedding
        self.candidates = context.vocabulary.neighbours.candidates
        lanes = context.lanes
        self.value = torch.zeros(lanes.slots, self.embedding.shape[1], device=context.decoder.device)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.value), torch.zeros_like(self.value)
        self.step = torch.zeros(lanes.slots, dtype=torch.long, device=self.value.device)
        self.position = torch.full_like(lanes.length, -1)
        self.prior = NextTokenPrior(context) if init == "prior" else None

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.value, self.exp_avg, self.exp_avg_sq, self.step

    def at(self, slots: Tensor) -> Tensor:
        """The rows of these lanes."""
        return sent_one(self.value.device, slots)

    def steps(self, slots: Tensor) -> Tensor:
        """Taken at the positions of these lanes, `[b]` on the host: what a search goes on is waited for here."""
        return told(self.step[self.at(slots)])[0]

    def begin(self, slots: Tensor) -> None:
        """New texts stand in these lanes."""
        self.position.index_fill_(0, slots, -1)
        if self.prior is not None:
            self.prior.begin(slots)

    def start_new(self, slots: Tensor) -> Tensor:
        """Start afresh those of `slots` that moved on since the last look; returns them."""
        fresh = slots[self.position[slots] != self.context.lanes.length[slots]]
        if len(fresh):
            at = self.at(fresh)
            self.value[at] = self._starts(fresh)
            for table in (self.exp_avg, self.exp_avg_sq, self.step):
                table.index_fill_(0, at, 0)
            self.position[fresh] = self.context.lanes.length[fresh]
        return fresh

    def _starts(self, slots: Tensor) -> Tensor:
        """Where the search begins, `[b, D_e]`: zeros, the row of a random token, Gaussian of the rows' spread, or the
        mean row under the model's own next-token prior (the mean of all rows at the first position)."""
        if self.init == "zeros":
            return torch.zeros(len(slots), self.value.shape[1], device=self.value.device)
        if self.init == "token":
            return self.random_rows(slots)
        if self.prior is not None:
            parts = [self.embedding.mean(self.prior.scores(part).softmax(-1)) for part in slots.split(_PRIORS_AT_ONCE)]
            return torch.cat(parts).nan_to_num()  # a spoilt row before this one must not spoil this one
        noise = torch.stack([torch.randn(self.value.shape[1], generator=g) for g in self._generators(slots)])
        return sent_one(self.value.device, noise) * self.embedding.deviation(self.candidates)

    def random_rows(self, slots: Tensor) -> Tensor:
        """The embedding row of a random token for each lane, `[b, D_e]`."""
        chosen = [int(torch.randint(len(self.candidates), (1,), generator=g)) for g in self._generators(slots)]
        return self.embedding[self.candidates[self.at(torch.tensor(chosen))]]

    def _generators(self, slots: Tensor) -> list[torch.Generator]:
        """One a lane, seeded by its target row and the seed."""
        bits = self.context.lanes.target(slots).view(torch.int32).long()
        weight = torch.arange(1, bits.shape[1] + 1, device=bits.device)
        keys = ((bits * weight).sum(-1) + self.seed).tolist()
        return [torch.Generator().manual_seed(key & (2**63 - 1)) for key in keys]

    def hold(self, slots: Tensor, *, once: bool = False) -> Held:
        """The prefixes of these lanes in the precision of the search, for `gradient` (once: for one call of it)."""
        return self.context.lanes.hold(slots, self.dtype, self.compute, once=once)

    def gradient(self, slots: Tensor, value: Tensor, held: Held) -> tuple[Tensor, Tensor]:
        """MSE(f(e), h) `[b]` and its gradient `[b, D_e]` at `value`, for lanes whose prefixes are held."""
        lanes = self.context.lanes
        return lanes.gradient(slots, value, lanes.target(slots), held)


class _Settings(Protocol):
    @property
    def cuda_graph(self) -> bool | None: ...
    @property
    def search_dtype(self) -> str | None: ...


def graphed_steps(context: Context, proxies: Proxies, settings: _Settings, advance: Advance) -> GraphedSteps | None:
    """What runs steps as a CUDA graph, or None where they are to run as they are."""
    on_cuda = context.decoder.device.type == "cuda"
    traced = getattr(settings, "trace", False)  # looks at every step
    if (
        context.decoder.own is not None
        or traced
        or settings.cuda_graph is False
        or (settings.cuda_graph is None and not on_cuda)
    ):
        return None
    return GraphedSteps(context.lanes, proxies.value.shape[1], advance, settings.search_dtype or "float32")
