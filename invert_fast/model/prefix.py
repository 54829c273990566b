"""What one pass of a model sees of the lanes' prefixes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


@dataclass
class PrefixCall:
    """What one forward pass of the twin sees of the lanes, and the KV it leaves behind.

    keys, values: per layer `[S, Hkv, M, d]` storage or None for an empty prefix; lengths `[B]`; slots: the row of
    storage of each lane, None for row b. own: layer → the (key, value) `[B, Hkv, K, d]` of the tokens just run.
    """

    causal: bool
    keys: list[Tensor] | None = None
    values: list[Tensor] | None = None
    lengths: Tensor | None = None
    slots: Tensor | None = None
    own: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class JointCall:
    """Several calls in one pass, whose tokens `[B, K]` lie one after the other: `[1, Σ B·K]`. Each attends as if it
    were alone. parts: each call, with its B and K."""

    parts: list[tuple[PrefixCall, int, int]]


class Passed(NamedTuple):
    """States `[B, K, D]`, and the call that they are of."""

    hidden: Tensor
    call: PrefixCall
