"""Noise that was added to states, as files and options say it: its kind and how loud it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GAUSSIAN, LAPLACIAN = KINDS = ("gaussian", "laplacian")
WRITTEN = "gaussian:0.05 or laplacian:0.05 (over the root mean square of each row), or gaussian:0.02:absolute"
_ALIASES = {"laplace": LAPLACIAN, "normal": GAUSSIAN}


@dataclass(frozen=True)
class Noise:
    """Independent noise in every number of a state.

    kind: `gaussian` or `laplacian`; sigma: its standard deviation, above 0: over the root mean square of the row that
    it was added to (the strength of `invert_fast.defences`), or, where not relative, in the units of the states.
    Raises InputError for anything else.
    """

    kind: str
    sigma: float
    relative: bool = True

    def __post_init__(self):
        object.__setattr__(self, "kind", _ALIASES.get(self.kind, self.kind))
        if self.kind not in KINDS or not (isinstance(self.sigma, (int, float)) and 0 < self.sigma < math.inf):
            from ..types import InputError

            raise InputError(
                f"noise '{self.kind}:{self.sigma}' is unknown, expected a kind and a standard deviation above 0: "
                f"{WRITTEN}"
            )

    @property
    def spec(self) -> str:
        """`gaussian:0.05`, with `:absolute` behind where it is: as files and `--noise` have it."""
        return f"{self.kind}:{float(self.sigma)!r}" + ("" if self.relative else ":absolute")

    def __str__(self) -> str:
        return self.spec

    def deviation(self, clean: Tensor) -> Tensor:
        """Standard deviation of a number of rows `[..., D]` that had no noise yet: `[...]`."""
        level = clean.square().mean(-1).sqrt()
        return self.sigma * level if self.relative else self.sigma + 0 * level

    def beside(self, length: float, width: int) -> float:
        """Its length over that of a row that it is in already, of `length` and `width` numbers."""
        if self.relative:
            return self.sigma / math.sqrt(1 + self.sigma**2)
        return min(self.sigma * math.sqrt(width) / max(length, 1e-30), 0.999)

    def log_density(self, away: Tensor, deviation: Tensor) -> Tensor:
        """log p of noise `away [..., D]` of such a deviation `[...]`, without the constant that all share: `[...]`."""
        width = away.shape[-1]
        if self.kind == GAUSSIAN:
            return -0.5 * away.square().sum(-1) / deviation.square() - width * deviation.log()
        return -math.sqrt(2) * away.abs().sum(-1) / deviation - width * (deviation.log() - _PEAK)


_PEAK = 0.5 * math.log(math.pi)  # a Laplacian's density at its centre over a Gaussian's of the same deviation: √π


def noise_named(text: str | Noise | None) -> Noise | None:
    """`"gaussian:0.05"` → `Noise("gaussian", 0.05)`. InputError that says what was wanted for any other text."""
    if text is None or isinstance(text, Noise):
        return text
    kind, *rest = str(text).strip().split(":")
    try:
        if len(rest) not in (1, 2) or rest[1:] not in ([], ["absolute"]):
            raise ValueError
        return Noise(kind, float(rest[0]), len(rest) == 1)
    except ValueError as error:
        from ..types import InputError

        if isinstance(error, InputError):
            raise
        raise InputError(f"noise '{text}' is unknown, expected {WRITTEN}") from None
