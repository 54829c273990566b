"""States with noise of a known level: what fits, what is certified, and what cannot be.

The noise is independent in every number, so its part along any one direction has a standard deviation of σ, and it is
√D σ long. A rival is out of the question by the likelihood-ratio test of `At`: the noise would have to reach z σ along
the line from its state. σ is what was stated, and at least what the residual at hand says (for normal noise that makes
it Student's test, which holds whatever was stated). docs/noise.md derives it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..model.transfer import sent_one
from ..storage.noise import LAPLACIAN, Noise
from ..types import Status
from .ledger import Ledger
from .tolerances import ERROR, At, Tolerances, deviations

log = logging.getLogger("invert_fast")

_LOUDEST = 5.2  # standard deviations that a true token's residual may be above what is usual: one in ten million
_TAILS = {False: 2.0, True: 5.0}  # variance of the square of a number of unit noise: normal, Laplacian
_MARGIN = 1.25  # on what a residual says of Laplacian noise, whose length varies more
_USUAL = 3.0  # deviations within a context from how near other tokens' states can be to how near they usually are


@dataclass(frozen=True)
class NoisyTolerances(Tolerances):
    """As `Tolerances`, all in the plain metric. spread: here the least standard deviation of noise along a direction,
    over the length of a state. noise_level: what was stated; rounding: typical length of all other noise; width: D."""

    noise_level: Noise | None = None
    rounding: tuple[float, float] = (0.0, 0.0)
    width: int = 1

    @property
    def level(self) -> Noise | None:
        return self.noise_level

    @property
    def own(self) -> tuple[float, float]:
        return self.rounding

    @property
    def laplacian(self) -> bool:
        return self.noise_level is not None and self.noise_level.kind == LAPLACIAN

    def deviations(self, count: int) -> float:
        return laplacian_deviations(count) if self.laplacian else deviations(count)

    def at(self, positions: Tensor) -> NoisyAt:
        plain = super().at(positions)
        figures: dict[str, Any] = {field.name: getattr(plain, field.name) for field in fields(plain)}
        figures["exact"] = False
        return NoisyAt(**figures, width=self.width, laplacian=self.laplacian)

    def describe(self) -> str:
        first, rest = self.typical
        return f"noise {self.level}: residuals of about {first:.2g} (first) and {rest:.2g}"


@dataclass(frozen=True)
class NoisyAt(At):
    """The figures of some positions; spread: as in `NoisyTolerances`."""

    width: int = 1
    laplacian: bool = False

    def need(self, residual: Tensor, z: float) -> Tensor:
        """How far along the line to a rival noise cannot reach: z deviations of what was stated, or of what the
        residual at hand says where that is more."""
        if self.laplacian:
            return z * torch.maximum(self.spread, _MARGIN * residual / math.sqrt(self.width))
        freedom = max(1, self.width - 1)
        return torch.maximum(z * self.spread, student(z, freedom) * residual / math.sqrt(freedom))

    def reach(self, residual: Tensor, z: float) -> Tensor:
        return (residual.square() + self.need(residual, z).square()).sqrt()

    def required(self, residual: Tensor, z: float) -> Tensor:
        need = self.need(residual, z)
        return need + (need.square() + residual.square()).sqrt()

    def loudness(self, residual: Tensor) -> Tensor:
        return residual / self.tolerance

    def hopeless(self, separation: Tensor, residual: Tensor, z: float) -> Tensor:
        """Whether the nearest row's state usually is so near that no certificate would come of trying it."""
        return self.bound(separation, residual) * (_USUAL * self.within).exp() < self.need(residual, z)

    def usual_radius(self, residual: Tensor, z: float) -> Tensor:
        """Within which distance of rows states usually are nearer than an untried rival's has to be."""
        return self.radius(self.required(residual, z) / (_USUAL * self.within).exp(), residual)

    def error(self, residual: Tensor, bound: Tensor, second: Tensor, count: int) -> Tensor:
        residual, bound, second = residual.double(), bound.double(), second.double()
        tried = (second.square() - residual.square()).clamp_min(0).sqrt()
        untried = (bound - residual.square() / bound.clamp_min(1e-30)).clamp_min(0) / 2
        along, least = torch.minimum(tried, untried), self.spread.double().clamp_min(1e-30)
        if self.laplacian:
            tail = laplacian_tail(along / torch.maximum(least, _MARGIN * residual / math.sqrt(self.width)))
        else:
            freedom = max(1, self.width - 1)
            by_residual = normal_of(along * math.sqrt(freedom) / residual.clamp_min(1e-30), freedom)
            tail = torch.special.ndtr(-torch.minimum(along / least, by_residual))
        return (count * tail).clamp_max(1.0)


def noisy_tolerances(
    flat: Tolerances, own: Tolerances, noise: Noise, lengths: tuple[float, float], width: int
) -> NoisyTolerances:
    """For states with `noise`. flat: how far states are apart, in the plain metric; own: of the same states without it;
    lengths: of a state of a first position, and of another."""
    known: dict[str, Any] = {
        field.name: getattr(flat, field.name) for field in fields(Tolerances) if field.name != "metric"
    }
    added = [noise.beside(length, width) for length in lengths]
    typical = [math.hypot(one, rest) for one, rest in zip(added, own.own, strict=True)]
    spread = [
        math.hypot(one / math.sqrt(width), rest * wide)
        for one, rest, wide in zip(added, own.own, flat.spread, strict=True)
    ]
    more = math.sqrt(1 + _LOUDEST * math.sqrt(_TAILS[noise.kind == LAPLACIAN] / width) * (1 + 8 / width))
    ceiling = max(typical[0] * more, own.plain_noise[0]), max(typical[1] * more, own.plain_noise[1])
    known.update(noise=ceiling, tolerance=ceiling, typical=tuple(typical), spread=tuple(spread), plain=(1.0, 1.0))
    return NoisyTolerances(**known, noise_level=noise, rounding=own.own, width=width)


def keep_certain(ledger: Ledger, slots: Tensor) -> None:
    """Of finished texts with noise: a certificate stands on those of all tokens before, and on residuals that together
    are no louder than what was stated. Others are named ambiguous."""
    tolerances, lanes = ledger.tolerances, ledger.lanes
    if not isinstance(tolerances, NoisyTolerances) or tolerances.level is None:
        return
    for slot in slots.tolist():
        count = int(lanes.target_length[slot])
        status = ledger.status[slot, :count]
        certain = (status == Status.CERTIFIED).long().cumprod(-1).bool()
        rows = lanes.targets[slot, :count][sent_one(lanes.device, certain.nonzero().flatten())]
        loud = _louder(tolerances, ledger.residual[slot, :count][certain], rows)
        if loud > 1:
            log.warning(
                "a text's residuals are %.2f times what noise %s makes them, so nothing in it is certified: state a "
                "louder one, or let it be estimated (noise 'auto')",
                *(loud, tolerances.level),
            )
            certain = torch.zeros_like(certain)
        fell = (status == Status.CERTIFIED) & ~certain
        ledger.status[slot, :count] = status.masked_fill(fell, int(Status.AMBIGUOUS))
        ledger.error[slot, :count] = ledger.error[slot, :count].masked_fill(fell, 1.0)


def _louder(tolerances: NoisyTolerances, residual: Tensor, target: Tensor) -> float:
    """Root mean square of residuals `[n]` of states `[n, D]` over what was stated, 1 where it is not clearly more."""
    noise, count, width = tolerances.level, len(residual), tolerances.width
    if noise is None or not count:
        return 1.0
    lengths = target.norm(dim=-1).tolist()
    own = (2 * max(tolerances.own)) ** 2  # rounding varies from place to place
    stated = residual.new_tensor([noise.beside(length, width) ** 2 + own for length in lengths])
    over = float((residual.square() / stated.clamp_min(1e-30)).mean())
    may = 1 + _LOUDEST * math.sqrt(_TAILS[tolerances.laplacian] / (width * count)) * (1 + 8 / width)
    return math.sqrt(over) if over > may else 1.0


def student(z: float, freedom: int) -> float:
    """What Student's t exceeds as rarely as a normal variable exceeds z (Wallace 1959, and never less than that)."""
    grown = (z * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom
    return math.sqrt(freedom * math.expm1(min(grown, 600.0)))


def normal_of(t: Tensor, freedom: int) -> Tensor:
    """`student` turned round."""
    return (8 * freedom + 1) / (8 * freedom + 3) * (freedom * torch.log1p(t.square() / freedom)).sqrt()


def laplacian_tail(t: Tensor) -> Tensor:
    """How likely Laplacian noise exceeds t deviations along a direction, at most, whatever the direction: Chernoff's
    bound min_λ e^{−λt} Π 1/(1 − w_i²λ²/2), which is largest where the direction w is an axis."""
    root = ((1 + 2 * t.square()).sqrt() - 1) / t.clamp_min(1e-9)
    return (torch.exp(-root * t) / (1 - root.square() / 2).clamp_min(1e-300)).clamp_max(1.0)


def laplacian_deviations(count: int) -> float:
    """As `deviations`, of Laplacian noise."""
    low, high, wanted = 0.0, 200.0, ERROR / max(1, count)
    for _ in range(100):
        middle = (low + high) / 2
        beyond = float(laplacian_tail(torch.tensor(middle, dtype=torch.float64))) > wanted
        low, high = (middle, high) if beyond else (low, middle)
    return high
