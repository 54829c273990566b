"""Every token of the vocabulary, in blocks, by ascending id: the method that cannot miss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.protocol import Block, Context, Run
from .blocks import growing_blocks


@dataclass(frozen=True)
class Exhaustive:
    """block: candidates verified at once for each lane."""

    block: int = 1024
    name: str = "exhaustive"

    def bind(self, context: Context) -> _Proposer:
        """See `Strategy`."""
        return _Proposer(self, context)


class _Proposer:
    def __init__(self, settings: Exhaustive, context: Context):
        self.settings, self.context = settings, context
        self.order = -torch.arange(context.vocabulary.size, device=context.decoder.device, dtype=torch.float32)

    def begin(self, slots: Tensor) -> None:
        """Nothing to prepare."""

    def propose(self, slots: Tensor) -> list[Run | Block]:
        block = self.settings.block
        return [*growing_blocks(self.context, slots, self.order.expand(len(slots), -1), block, 1, block, "exhaustive")]
