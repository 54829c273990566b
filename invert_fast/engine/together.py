"""What a round asks of different lanes, in one pass: a call of a large model takes most of its time to read the
weights, whether two tokens go through them or fifty."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ..model.joint import Asked, joint_pass
from ..model.lanes import Lanes
from ..model.prefix import Passed
from .memory import ran_out
from .protocol import Block, Run, Working

log = logging.getLogger("invert_fast")

_MOST = 512  # tokens, of all calls: beyond, computing takes longer than reading


def passed_together(lanes: Lanes, items: Sequence[Run | Block | Working], most: int) -> list[Passed | None]:
    """The states of all items from one pass, None for those that have to be asked for one by one. most: tokens that one
    pass may compute."""
    asked = [_asked(item) for item in items if not isinstance(item, Working)]
    apart: list[Passed | None] = [None] * len(items)
    if not lanes.decoder.joins or len(asked) < 2 or sum(one.ids.numel() for one in asked) > min(most, _MOST):
        return apart
    try:
        found = iter(joint_pass(lanes, asked))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        log.warning("out of memory: what a round asks of different lanes goes through passes of their own from now on")
        lanes.decoder.joins = False
        return apart
    return [None if isinstance(item, Working) else next(found) for item in items]


def _asked(item: Run | Block) -> Asked:
    if isinstance(item, Run):
        return Asked(item.slots, item.ids, True, "draft")
    return Asked(item.slots, item.ids.clamp_min(0), False, item.part)
