"""Many thousand candidates of a large vocabulary in the orders of lens and prior, before all of it is tried.

For positions that drafts, repairs and gradient steps all left: nothing is made for any other.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.protocol import Block, Context, Run
from ..lens.base import Lens
from ..lens.choose import choose_lens
from ..lens.outside import LensMaker
from ..model.transfer import picked
from ..ops.best_two import MANY_TOKENS
from .blocks import growing_blocks
from .candidates import Candidates


@dataclass(frozen=True)
class LensOrder:
    """part: which part of a vocabulary that has short lists is tried, none of a smaller one; block: candidates at once;
    lens, seed: as in `Speculative`."""

    part: float = 1 / 16
    block: int = 1024
    lens: str | Lens | LensMaker = "auto"
    seed: int = 0
    name: str = "lens-order"

    def bind(self, context: Context) -> _Proposer:
        return _Proposer(self, context)


class _Proposer:
    def __init__(self, settings: LensOrder, context: Context):
        self.settings, self.context = settings, context
        self.candidates: Candidates | None = None
        self.drafted: set[int] = set()  # lanes whose text the candidates have seen

    def begin(self, slots: Tensor) -> None:
        if self.drafted:
            self.drafted -= {*slots.tolist()}

    def propose(self, slots: Tensor) -> list[Run | Block]:
        context, settings = self.context, self.settings
        if context.vocabulary.size < MANY_TOKENS:
            return []
        slots = slots[context.attempts.tries[slots] < settings.part * context.vocabulary.size]
        if not len(slots):
            return []
        if self.candidates is None:
            lens = choose_lens(context.decoder, context.vocabulary, settings.lens, context.states_dtype, settings.seed)
            self.candidates = Candidates(context, lens)
        for slot in {*slots.tolist()} - self.drafted:
            one = slots.new_tensor([slot])
            self.candidates.draft(one, context.lanes.targets[slot, : int(context.lanes.target_length[slot])][None])
            self.drafted.add(slot)
        near = picked(context.attempts.near_state, slots), context.attempts.near_ids[slots, 0].clamp_min(0)
        ranked = self.candidates.ranked(slots, context.lanes.length[slots], *near, whole=True)
        return [*growing_blocks(context, slots, ranked, settings.block, 1, settings.block)]
