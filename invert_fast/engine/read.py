"""Texts as they are read (`model/reading.py`): a known prefix gets the rows that it has not, and is told of no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..types import Recovery

Texts = Iterable[tuple[int, Tensor] | None]  # None: none now, see `Engine.run`
Run = Callable[[Texts], Iterator[tuple[int, Recovery]]]
_TABLES = (  # of a recovery, a row a position
    *("token_ids", "residual", "discrete_loss", "margin", "status", "rank", "steps"),
    *("loss_ceiling", "error_bound", "posterior"),
)


def run_as_read(decoder: Decoder, texts: Texts, run: Run) -> Iterator[tuple[int, Recovery]]:
    """`run` of the rows `[T, D]` of each text as the decoder reads them, behind the model's own rows of the prefix.

    The certificate of a token holds given all before it, hence given the prefix: a wrong one gives other states, and
    nothing behind it is certified.
    """
    reading = decoder.reading
    read = (item and (item[0], reading.rows(item[1])) for item in texts)
    if not reading.prefix:
        return run(read)
    ids = torch.tensor([reading.prefix], device=decoder.device)
    before = decoder.capture(ids)[0].float().cpu()
    whole = (item and (item[0], torch.cat([before, item[1].cpu()])) for item in read)
    return ((index, behind(found, len(before), decoder.decode)) for index, found in run(whole))


def behind(found: Recovery, count: int, decode: Callable[[list[int]], str | None]) -> Recovery:
    """The recovery less its first `count` positions; what it cost stays the cost of all."""
    cut = positions(found, count, len(found.token_ids))
    return replace(cut, text=decode(cut.token_ids.tolist()))


def positions(found: Recovery, start: int, stop: int) -> Recovery:
    """What is known of these positions, counted from the first of them; text and cost stay those of all."""
    cut = {name: table[start:stop] for name in _TABLES if (table := getattr(found, name)) is not None}
    others = {at - start: also for at, also in found.alternatives.items() if start <= at < stop}
    return replace(found, alternatives=others, trace=None, **cut)
