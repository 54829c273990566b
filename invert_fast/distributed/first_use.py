"""What the first inversion of a model measures and fits, made by one process while the others wait for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from filelock import FileLock, Timeout

from ..engine.protocol import Strategy
from ..engine.tolerances import Tolerances
from ..inverter import Inverter
from ..model.decoder import Decoder
from ..storage import cache
from ..types import States

log = logging.getLogger("invert_fast")
_SAID, _PATIENCE = 2.0, 3600.0  # seconds after which waiting for another process is said, and given up


def first_use(inverter: Inverter, strategy: str | Strategy, states_dtype: str, compute_dtype: str) -> Tolerances:
    """Tolerances for states of this precision, and with them in the cache folder whatever the strategy drafts with."""
    with alone(inverter.decoder):
        tolerances = inverter.calibrate(states_dtype, compute_dtype)
        nothing = States(torch.zeros(0, inverter.decoder.width), inverter.decoder.layer.name)
        given = {"states_dtype": states_dtype, "tolerances": tolerances}
        list(inverter.invert_iter([(0, nothing)], strategy, lengths=[0], **given))
    return tolerances


@contextmanager
def alone(decoder: Decoder) -> Iterator[None]:
    """One process at a time for a model and layer: the others wait and find what the first has measured and fitted. So
    do those of other machines, where the cache folder is on a file system that they share and that can lock."""
    root, lock = cache.folder(), None
    if root is not None:
        lock = FileLock(root / f"{cache.key(decoder.identity, 'first-use')}.lock")
        try:
            root.mkdir(parents=True, exist_ok=True)
            _wait(lock)
        except (OSError, Timeout, NotImplementedError):  # then each does it for itself
            lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _wait(lock: FileLock) -> None:
    try:
        lock.acquire(timeout=_SAID)
    except Timeout:
        log.info("waiting for another process that measures or fits what the first inversion of this model needs")
        lock.acquire(timeout=_PATIENCE)
