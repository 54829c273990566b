"""For users of vec2text: a tensor and something loaded go in, a list of strings comes out. Needs no other package."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..inverter import Inverter
from ..types import InputError

log = logging.getLogger("invert_fast")
DOUBTS = ("warn", "raise", "ignore")


def load_inverter(name_or_path: str, layer: int | str = -1) -> Inverter:
    """What vec2text calls a corrector: here nothing was trained, the model itself is asked."""
    return Inverter.from_pretrained(name_or_path, layer)


def invert_hidden_states(
    hidden_states: Any, inverter: Inverter, *, attention_mask: Any = None, doubt: str = "warn", **options: Any
) -> list[str]:
    """The texts whose hidden states these are, in order.

    hidden_states, attention_mask, options: as `Inverter.invert` takes them; doubt: what to do where a text is not
    certified, which strings do not show: `warn` (log it), `raise` RuntimeError, or `ignore`. Raises InputError without
    a tokenizer. `Inverter.invert` gives the certificates too.
    """
    if doubt not in DOUBTS:
        raise InputError(
            f"doubt is {doubt!r}, expected {', '.join(DOUBTS)}: say what to do about what is not certified"
        )
    if inverter.decoder.tokenizer is None:
        raise InputError(
            "this inverter has no tokenizer, expected one for strings: give it one, or call invert for ids"
        )
    found = inverter.invert(hidden_states, attention_mask=attention_mask, **options)
    unsure = [i for i, recovery in enumerate(found) if not recovery.certified]
    if unsure and doubt == "raise":
        found[unsure[0]].raise_if_failed()
    if unsure and doubt == "warn":
        log.warning(
            "%d of %d texts are not certified (the first: text %d, position %d): Inverter.invert says why",
            *(len(unsure), len(found), unsure[0], found[unsure[0]].first_failure or 0),
        )
    return [recovery.text or "" for recovery in found]


def invert_strings(strings: Sequence[str], inverter: Inverter, **options: Any) -> list[str]:
    """Strings → their hidden states → strings: what a model gives away of its own input."""
    return invert_hidden_states(inverter.capture(strings), inverter, **options)
