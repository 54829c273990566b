"""What the model says of continuations of one text: what every mend asks, and where its cost is counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.tolerances import Tolerances, deviations
from ..lens.base import Lens
from ..model.decoder import Decoder
from ..model.own_lanes import lanes_of
from ..model.vocabulary import Vocabulary
from ..ops.best_two import MANY_TOKENS

_AT_ONCE = 1024  # tokens of a call
_CONTEXT = 16  # rows before one that a lens looks at


class Asked:
    """The tokens of one text so far, those that a decoder's reading puts before it included, and what may follow."""

    def __init__(self, decoder: Decoder, most: int):
        self.decoder, self.lanes = decoder, lanes_of(decoder, 1, most + len(decoder.reading.prefix))
        self.slot = torch.zeros(1, dtype=torch.long)
        self.last: Tensor | None = None  # the state of the last token
        if decoder.reading.prefix:
            self.extend(decoder.reading.prefix)

    @property
    def length(self) -> int:
        return int(self.lanes.length[0])

    @property
    def cost(self) -> int:
        """Tokens through the forward pass so far."""
        return int(self.lanes.forward_tokens[0])

    @torch.no_grad()
    def extend(self, ids: Sequence[int]) -> Tensor:
        """These tokens follow; their states `[K, D]`."""
        tokens = torch.tensor([list(ids)])
        states = self.lanes.draft(self.slot, tokens)
        count, keep = torch.full_like(self.slot, len(ids)), torch.ones_like(self.slot, dtype=torch.bool)
        self.lanes.commit(self.slot, tokens, count, self.slot, keep=keep)
        self.last = states[0, -1]
        return states[0]

    @torch.no_grad()
    def after(self, ids: Tensor) -> Tensor:
        """States `[n, K, D]` of n ways to go on, `ids [n, K]`; none of them is taken."""
        found = []
        for part in ids.split(max(1, _AT_ONCE // ids.shape[1])):
            slots = self.slot.expand(len(part)).contiguous()
            if ids.shape[1] == 1:  # one question of many answers shares the prefix without a copy
                found.append(self.lanes.fan_out(self.slot, part.T)[0][:, None])
            else:
                found.append(self.lanes.draft(slots, part))
        return torch.cat(found) if found else self.lanes.targets.new_zeros(0, ids.shape[1], self.decoder.width)


class Fits:
    """How near states come to rows, and what of that is near enough: the figures of the engine, for so many rivals."""

    def __init__(self, tolerances: Tolerances, rivals: int):
        self.tolerances, self.z = tolerances, deviations(rivals)

    @property
    def exact(self) -> bool:
        """States whose noise is a floor: what does not fit is off by many times that."""
        return self.tolerances.metric is None

    def residuals(self, states: Tensor, rows: Tensor, position: int) -> Tensor:
        """Of `states [N, D]` from each of `rows [R, D]` at one position: `[R, N]`, in the metric of the noise."""
        at = torch.full((1, 1), position, device=rows.device)
        return torch.cat([self.tolerances.residuals(states[None], row[None], at)[1] for row in rows])

    def along(self, states: Tensor, rows: Tensor, position: int) -> Tensor:
        """Of `states [N, T, D]` from `rows [T, D]`, from a position on: `[N, T]`."""
        at = (position + torch.arange(len(rows), device=rows.device)).expand(states.shape[:2])
        return self.tolerances.row_residuals(states, rows.expand(states.shape), at)[1]

    def near(self, residual: Tensor, position: int) -> Tensor:
        """Whether what is so near fits, and no more loudly than noise mostly is."""
        at = self.tolerances.at(torch.as_tensor(position, device=residual.device))
        return (residual <= at.tolerance) & (at.loudness(residual) <= 1)

    def reach(self, residual: Tensor, position: int | Tensor) -> Tensor:
        """How near another explanation must come to be in question beside one of this residual."""
        return self.tolerances.at(torch.as_tensor(position, device=residual.device)).reach(residual, self.z)


@torch.no_grad()
def read_by(lens: Lens, vocabulary: Vocabulary, context: Tensor, rows: Tensor, count: int) -> Tensor:
    """The `count` tokens `[R, count]` that a lens reads first off each of `rows [R, D]`, behind the rows `context
    [C, D]` (or `[R, C, D]`, one for each), which may be none. Of a large vocabulary no more than a list has; −1 where
    there are fewer."""
    context = context[..., -_CONTEXT:, :].expand(len(rows), -1, -1)
    proxies = lens.proxies(torch.cat([context, rows[:, None]], 1))[:, -1]
    begins = torch.full((len(rows),), context.shape[1] == 0, device=rows.device)
    if vocabulary.size >= MANY_TOKENS:
        listed = lens.row_lists(proxies) if context.shape[1] else [part[:, 0] for part in lens.lists(proxies[:, None])]
        return listed[0][:, :count].long()
    return lens.scores(proxies, begins).topk(min(count, vocabulary.candidates)).indices
