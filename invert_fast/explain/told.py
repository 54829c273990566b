"""A text that is known, proposed to the engine as if it had been drafted: what it is called is the engine's to say.

So a certificate is explained at the price of verifying the text and trying what may be as near, however badly a lens
would have drafted it. Where the engine wants to see more tokens before it believes one, it is given the likeliest.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.protocol import Context, Run
from ..strategies.chain import Chain
from ..strategies.prior import PriorOrder

_OTHERS = 256  # tokens that are tried beside one that does not fit, or fits but is loud


@dataclass(frozen=True)
class Told:
    """Proposes the one text `ids`; at a position where its token does not fit it has nothing else to say."""

    ids: tuple[int, ...]
    name: str = "told"

    def bind(self, context: Context) -> _Proposer:
        """See `Strategy`."""
        return _Proposer(self.ids, context)


class _Proposer:
    def __init__(self, ids: tuple[int, ...], context: Context):
        self.ids, self.context = ids, context

    def begin(self, slots: Tensor) -> None:
        """There is one text, and it is known."""

    def propose(self, slots: Tensor) -> list[Run]:
        attempts, lanes = self.context.attempts, self.context.lanes
        items = []
        for slot in slots[attempts.tries[slots] == 0].tolist():
            left = lanes.ids.new_tensor([self.ids[int(lanes.length[slot]) :]])
            items.append(Run(lanes.ids.new_tensor([slot]), left, lanes.ids.new_tensor([left.shape[1]])))
        return items


def telling(ids: list[int]) -> Chain:
    """The strategy for a text that is known."""
    return Chain(Told(tuple(ids)), PriorOrder(max_candidates=_OTHERS), name="told")
