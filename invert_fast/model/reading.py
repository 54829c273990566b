"""How captured states are to be read: what else happened to them, and where in a text they began.

What can be undone exactly is undone on the rows that came in (a constant factor). What cannot, because it threw
something away (the mean of a row, its length), is done to the model's own states as well: then both are compared in
what is left, and calibration measures there how far right and wrong tokens are apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import InputError

UNIT = "unit"
_TINY = 1e-30


@dataclass(frozen=True)
class Reading:
    """position_offset: the position of the first row (left padding shifts models with absolute positions);
    centered: the mean over the width was taken out of every row (weights that write to the residual stream centred);
    scale: rows were multiplied by this number, or `unit`: each was divided by its own length;
    prefix: ids of known tokens that stood before the first row and have no rows, a BOS for example.

    Raises InputError for an offset below zero and a scale that is no number above zero.
    """

    position_offset: int = 0
    centered: bool = False
    scale: float | str = 1.0
    prefix: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "prefix", tuple(self.prefix))
        if not isinstance(self.position_offset, int) or self.position_offset < 0:
            raise InputError(
                f"position offset {self.position_offset} is no position, expected 0 or more: the number of padding "
                "tokens before the text"
            )
        if self.scale != UNIT and not (isinstance(self.scale, (int, float)) and 0 < self.scale < math.inf):
            raise InputError(
                f"scale {self.scale!r} is no factor, expected a number above 0 or '{UNIT}': what the rows were "
                "multiplied by, or that each was divided by its own length"
            )

    @property
    def unit(self) -> bool:
        """Whether each row was divided by its own length."""
        return self.scale == UNIT

    @property
    def kind(self) -> str:
        """What of a state is compared: equal kinds, equal maps. Empty where it is all of it."""
        return " ".join(name for name, on in (("centered", self.centered), (UNIT, self.unit)) if on)

    @property
    def name(self) -> str:
        """What figures that were measured under this reading are of; empty for states as they are."""
        offset = f"offset {self.position_offset}" if self.position_offset else ""
        return " ".join(part for part in (self.kind, offset) if part)

    def level(self, states: Tensor) -> Tensor:
        """States `[..., D]` less their mean, where that is taken out."""
        return states - states.mean(-1, keepdim=True) if self.centered else states

    def seen(self, states: Tensor) -> Tensor:
        """What is compared of states `[..., D]`, of the model's and of the user's: less their mean, of length √D."""
        states = self.level(states)
        if self.unit:
            states = states * (math.sqrt(states.shape[-1]) / states.norm(dim=-1, keepdim=True).clamp_min(_TINY))
        return states

    def seen_rows(self, rows: Tensor, usual: Tensor) -> Tensor:
        """Embedding rows `[n, D]` less what no state that is compared so can show. Very short rows drown in a state:
        they stay short, though lengths do not show; usual: the median length of all `level` rows."""
        rows = self.level(rows)
        if self.unit:
            lengths, usual = rows.norm(dim=-1, keepdim=True), usual.clamp_min(_TINY)
            rows = rows / lengths.clamp_min(_TINY) * usual * (2 * lengths / usual).clamp_max(1.0)
        return rows

    def rows(self, hidden: Tensor) -> Tensor:
        """The user's rows `[T, D]` as they are compared."""
        scale = 1.0 if isinstance(self.scale, str) else self.scale
        return self.seen(hidden.float() if scale == 1 else (hidden.double() / scale).float())

    def options(self) -> list[str]:
        """The options of the command line that say the same."""
        said = [f"--position-offset {self.position_offset}"] if self.position_offset else []
        said += ["--centered"] if self.centered else []
        said += [f"--scale {self.scale}"] if self.unit else [f"--scale {self.scale:.9g}"] if self.scale != 1 else []
        return said + ([f"--prefix {','.join(map(str, self.prefix))}"] if self.prefix else [])


AS_CAPTURED = Reading()


def positions_from(offset: int, ids: Tensor) -> dict[str, Tensor]:
    """The argument of a model's own forward pass of `ids [B, T]` that begins at this position; none where it is 0, so
    that models get what they always got."""
    if not offset:
        return {}
    return {"position_ids": (offset + torch.arange(ids.shape[1], device=ids.device)).expand(ids.shape)}
