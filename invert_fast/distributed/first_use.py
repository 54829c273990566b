"""What the first inversion of a model measures and fits, made by one process while the others wait for it."""

from __future__ import annotations

import torch

from ..engine.protocol import Strategy
from ..engine.tolerances import Tolerances
from ..inverter import Inverter
from ..storage import cache
from ..storage.lock import in_turn
from ..types import States

_PATIENCE = 3600.0  # seconds
_WAITING = "waiting for another process that measures or fits what the first inversion of this model needs"


def first_use(inverter: Inverter, strategy: str | Strategy, states_dtype: str, compute_dtype: str) -> Tolerances:
    """Tolerances for states of this precision, and with them in the cache folder whatever the strategy drafts with."""
    with in_turn(cache.key(inverter.decoder.identity, "first-use"), _PATIENCE, _WAITING):
        tolerances = inverter.calibrate(states_dtype, compute_dtype)
        nothing = States(torch.zeros(0, inverter.decoder.width), inverter.decoder.layer.name)
        given = {"states_dtype": states_dtype, "tolerances": tolerances}
        list(inverter.invert_iter([(0, nothing)], strategy, lengths=[0], **given))
    return tolerances
