"""Rows of one text, the inverter that they are of, and how mended rows become a recovery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..engine.protocol import Strategy
from ..engine.tolerances import Tolerances
from ..lens.base import Lens
from ..lens.choose import choose_lens
from ..lens.prior import draft_lists
from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..ops.best_two import MANY_TOKENS
from ..types import Mended, Recovery, States, Status
from .asked import Asked, Fits, read_by
from .known import Known

_LISTED = 256  # tokens tried where the draft of a position is wrong
SURE = (Status.CERTIFIED, Status.AMBIGUOUS)


class Inverts(Protocol):
    """As much of an `Inverter` as is used here, which stands above."""

    decoder: Decoder
    vocabulary: Vocabulary

    def calibrate(self, states_dtype: str = "float32", compute_dtype: str = "float32") -> Tolerances: ...

    def checked(self, index: int, item: States | Tensor) -> Tensor: ...

    def invert(self, states: States, strategy: str | Strategy = "auto", **options) -> list[Recovery]: ...


@dataclass
class Work:
    """rows `[T, D]`: as the decoder reads them, on its device; precision: stored and computed. spent: tokens that were
    computed beyond what the last recovery says of itself."""

    inverter: Inverts
    rows: Tensor
    precision: tuple[str, str]
    spent: int = 0
    asking: list[Asked] = field(default_factory=list)

    @cached_property
    def lens(self) -> Lens:
        return choose_lens(self.inverter.decoder, self.inverter.vocabulary, "auto", self.precision[0])

    @property
    def vocabulary(self) -> Vocabulary:
        return self.inverter.vocabulary

    @property
    def decoder(self) -> Decoder:
        return self.inverter.decoder

    def fits(self, rivals: int) -> Fits:
        """What fits, of so many explanations."""
        return Fits(self.inverter.calibrate(*self.precision), rivals)

    def asked(self, ids: Sequence[int] = (), more: int = 0, decoder: Decoder | None = None) -> Asked:
        """What may follow these tokens, `more` of them at most; what that costs is counted."""
        made = Asked(decoder or self.decoder, len(ids) + more)
        self.asking.append(made)
        if ids:
            made.extend(ids)
        return made

    def read(self, context: Tensor, rows: Tensor, count: int) -> Tensor:
        return read_by(self.lens, self.vocabulary, context, rows, count).clamp_min(0)

    def inverted(self, rows: Tensor, ids: Sequence[int] | None = None) -> Recovery:
        """By the engine, of rows as they are read: drafted by `ids`, else by a lens. What was spent before is added to
        its cost by `done`."""
        before, reading = len(self.decoder.reading.prefix), self.decoder.reading
        whole = self._behind_prefix(rows)
        known = self._drafted(whole)
        if ids is not None:
            known = replace(known, ids=[*reading.prefix, *ids])
        if len(whole):
            known.lists[:before] = -1
            known = replace(known, ids=[*reading.prefix, *known.ids[before:]])
        given = rows if isinstance(reading.scale, str) else rows * reading.scale
        states = States(given, self.decoder.layer.name, *self.precision)
        stored, computed = self.precision
        (found,) = self.inverter.invert(states, known, states_dtype=stored, compute_dtype=computed)
        self.spent += found.cost.forward_tokens
        return found

    @torch.no_grad()
    def _drafted(self, whole: Tensor) -> Known:
        """What a lens makes of a text `[T, D]`."""
        if not len(whole):
            return Known([], torch.zeros(0, 0, dtype=torch.long, device=whole.device))
        if self.vocabulary.size >= MANY_TOKENS:
            found = draft_lists(self.decoder, self.lens, whole[None])
            ends = None if found.ends is None else found.ends[0]
            return Known(found.ids[0, :, 0].tolist(), found.ids[0].long(), self.lens, ends)
        lists = torch.cat([self.read(whole[:t], whole[t : t + 1], _LISTED) for t in range(len(whole))])
        return Known(self.lens.draft(whole[None])[0].tolist(), lists)

    def _behind_prefix(self, rows: Tensor) -> Tensor:
        prefix = self.decoder.reading.prefix
        if not prefix:
            return rows
        before = self.decoder.capture(torch.tensor([prefix], device=rows.device))[0].float()
        return torch.cat([before, rows])

    def made(self, ids: Sequence[int], count: int) -> Tensor:
        """The model's own rows `[count, D]` of the last of these tokens, behind the decoder's prefix."""
        whole = [*self.decoder.reading.prefix, *ids]
        self.spent += len(whole)
        return self.decoder.capture(torch.tensor([whole], device=self.rows.device))[0, -count:].float()

    def whole(self, front: Sequence[int], rows: Tensor) -> Tensor:
        """Rows behind the model's own of the tokens before them."""
        return torch.cat([self.made(front, len(front)), rows])

    def done(self, found: Recovery, mended: Mended) -> Recovery:
        """The recovery with what was mended, and the cost of all that was done."""
        spent = self.spent + sum(one.cost for one in self.asking)
        cost = found.cost
        more = spent - cost.forward_tokens
        text = self.decoder.decode(found.token_ids.tolist())
        cost = replace(cost, forward_tokens=spent, repair=cost.repair + more)
        return replace(found, cost=cost, mended=mended, text=text)


def bar(total: int, what: str) -> tqdm:
    """Of rows, where it takes a while."""
    return tqdm(total=total, desc=what, unit="row", delay=2, leave=False)


def first_failure(found: Recovery) -> int | None:
    """The first position that neither certifies nor is known but for tokens that are equal to the model."""
    (bad,) = (~np.isin(found.status, SURE)).nonzero()
    return int(bad[0]) if len(bad) else None


def with_lost(found: Recovery, ids: Sequence[int]) -> Recovery:
    """The recovery with more positions behind it, of which nothing is known but these guesses."""
    count = len(ids)
    if not count:
        return found
    status = np.full(count, int(Status.AFTER_FAILURE))
    status[0] = int(Status.NOT_FOUND)
    fresh = not bool((found.status == Status.NOT_FOUND).any())
    new = {
        "token_ids": np.asarray(ids),
        "residual": np.full(count, np.inf),
        "discrete_loss": np.full(count, np.inf),
        "margin": np.zeros(count),
        "status": status if fresh else np.full(count, int(Status.AFTER_FAILURE)),
        "rank": np.zeros(count),
        "steps": np.zeros(count),
        "loss_ceiling": np.zeros(count),
        "error_bound": np.ones(count),
    }
    tables = {name: (getattr(found, name), more) for name, more in new.items()}
    return replace(
        found,
        trace=None,
        **{
            name: np.concatenate([had, more.astype(had.dtype)])
            for name, (had, more) in tables.items()
            if had is not None
        },
    )


def not_certified(found: Recovery, start: int, status: Status = Status.BEST_MATCH) -> Recovery:
    """The recovery with nothing from `start` on certified: what was is called `status`."""
    changed, error = found.status.copy(), None if found.error_bound is None else found.error_bound.copy()
    which = np.flatnonzero(changed == Status.CERTIFIED)
    which = which[which >= start]
    changed[which] = int(status)
    if error is not None:
        error[which] = 1.0
    return replace(found, status=changed, error_bound=error)
