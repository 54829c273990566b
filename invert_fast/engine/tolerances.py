"""How near is near enough: the noise of the true token and the distance of wrong ones, measured, not assumed.

For a model, a layer, a capture precision and a position class (the first position of a trained model is an attention
sink whose states differ little, so it has figures of its own). `calibrate.py` measures them; docs/certificates.md
derives what is asked here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import torch
from torch import Tensor

from .. import ops
from ..model.transfer import sent_one
from ..storage.noise import Noise
from .noise import Metric

FIRST, REST = 0, 1
ERROR = 1e-9  # of a certified token: how likely noise makes it another's, at most
_ANYWHERE = 1 / 3  # deviation along a direction, over the length, of noise that may lie along it entirely
_NOISE_RANGE = 4.0  # over and under the typical noise, how far what is at hand is believed
_VERY_NEAR = 0.25  # of the knee: rows nearer than that have a slope of their own where states are coarse
_BELOW_SEEN, _SEEN_LEAST = 3.0, 2  # deviations below what was seen in a context, and how much must have been
_RUNNER_UP_FACTOR = 3.0  # where noise was hardly seen, a rival is in question within this many times its ceiling


@dataclass(frozen=True)
class Tolerances:
    """Relative L2 residuals in the metric of the noise, one figure a position class (first, rest).

    noise: ceiling of the true token's residual; tolerance: a token within it is accepted; wrong: the nearest wrong
    token measured; slope: least distance of two tokens' states per unit of distance between their rows, so that `slope
    × Vocabulary.separation_of` bounds how near any other token can come; power: of the noise at hand that it grows with
    (states that differ little have little noise); knee, bend: rows further apart than the knee are less and less so in
    their states, with this power of their distance; near: what of the slope is left for rows nearer than a quarter of
    the knee; within: standard deviation, in one context, of the log of how far states are apart beside how far their
    rows are; typical: a true token's residual, root mean square; spread: standard deviation of noise along the
    direction between two tokens' states, over the length of the noise; plain: the length of noise, over that in the
    metric; metric: None where it is the plain one, for states so exact that their noise is a floor.
    """

    noise: tuple[float, float]
    tolerance: tuple[float, float]
    wrong: tuple[float, float]
    slope: tuple[float, float]
    typical: tuple[float, float] = (1e-30, 1e-30)
    power: tuple[float, float] = (0.0, 0.0)
    knee: tuple[float, float] = (1e30, 1e30)
    bend: tuple[float, float] = (1.0, 1.0)
    near: tuple[float, float] = (1.0, 1.0)
    within: tuple[float, float] = (0.0, 0.0)
    spread: tuple[float, float] = (_ANYWHERE, _ANYWHERE)
    plain: tuple[float, float] = (1.0, 1.0)
    metric: Metric | None = field(default=None, compare=False, repr=False)

    @property
    def decades(self) -> tuple[float, float]:
        """log₁₀ of nearest wrong over noise ceiling: how clearly right and wrong are apart."""
        first, rest = (math.log10(max(w, 1e-30) / n) for w, n in zip(self.wrong, self.noise, strict=True))
        return first, rest

    @property
    def level(self) -> Noise | None:
        """The noise that was added to the states, where it is known: see `noisy.py`."""
        return None

    @property
    def own(self) -> tuple[float, float]:
        """Typical length of what rounding and passes add to a state, over its own."""
        first, rest = (t * p for t, p in zip(self.typical, self.plain, strict=True))
        return first, rest

    def deviations(self, count: int) -> float:
        """See `deviations` below."""
        return deviations(count)

    @property
    def plain_noise(self) -> tuple[float, float]:
        """The noise ceilings as plain relative L2 residuals."""
        first, rest = (n * p for n, p in zip(self.noise, self.plain, strict=True))
        return first, rest

    def at_noise(self, noise: tuple[float, float]) -> Tolerances:
        """The same model and layer, for states of another noise."""
        # accepted: half-way (in decades) between noise and the nearest wrong token, but never below the noise ceiling
        first, rest = (max(n, min(math.sqrt(n * w), 32 * n)) for n, w in zip(noise, self.wrong, strict=True))
        return replace(self, noise=noise, tolerance=(first, rest))

    def louder(self, factor: float) -> Tolerances:
        """For states whose noise is that many times as large as what was measured."""
        first, rest = (n * factor for n in self.typical)
        return replace(self, typical=(first, rest)).at_noise((self.noise[0] * factor, self.noise[1] * factor))

    def residuals(self, hidden: Tensor, target: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of states `hidden [b, N, D]` from targets `[b, D]` at `positions [b, 1]`: relative L2 residuals `[b, N]`, as
        they are and in the metric of the noise. NaN and overflow count as infinitely far."""
        plain = ops.residuals(hidden, target, backend="own")
        return plain, self._in_metric(hidden, target[:, None], plain, positions)

    def row_residuals(self, hidden: Tensor, target: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The same of states row by row: `[b, K, D]` each, at positions `[b, K]` → `[b, K]` twice."""
        rows = ops.residuals(hidden.flatten(0, 1)[:, None], target.flatten(0, 1), backend="own")
        plain = rows.view(positions.shape)
        return plain, self._in_metric(hidden, target, plain, positions)

    def _in_metric(self, hidden: Tensor, target: Tensor, plain: Tensor, positions: Tensor) -> Tensor:
        if self.metric is not None:
            length = target.norm(dim=-1, keepdim=True).clamp_min(1e-30)
            away = (hidden.float() - target) / length
            first = sent_one(plain.device, positions == 0).expand(plain.shape)
            plain = self.metric.lengths(away, plain, first)
        return plain.nan_to_num(nan=float("inf"), posinf=float("inf"))

    def at(self, positions: Tensor) -> At:
        """The figures of the class of each position."""
        first = positions == 0
        columns = (self.noise, self.tolerance, self.slope, self.power, self.knee, self.bend, self.near, self.within)
        columns = (*columns, self.typical, self.spread)
        return At(*(torch.where(first, *pair) for pair in columns), exact=self.metric is None)

    def plain_tolerance(self, positions: Tensor) -> Tensor:
        """The tolerance as a plain relative L2 residual."""
        first, rest = (t * p for t, p in zip(self.tolerance, self.plain, strict=True))
        return torch.where(positions == 0, first, rest)

    def describe(self) -> str:
        """One line for a log."""
        rows = zip(("first", "rest"), self.noise, self.tolerance, self.wrong, self.decades, strict=True)
        return "; ".join(
            f"{name}: noise {n:.1e}, tolerance {t:.1e}, nearest wrong {w:.1e} ({d:.1f} decades)"
            for name, n, t, w, d in rows
        )


@dataclass(frozen=True)
class At:
    """The figures of some positions, and what they ask of a rival there before it is out of the question.

    Had another token v stood there, the noise would have to reach from its state to the target. With d between the
    states of v and of the best token, r the residual of the best and s that of v, its part along that direction would
    be (d² + s² − r²) / 2d, which is at least √(s² − r²). It is normal with a deviation of `spread` times its length,
    taken to be r, but not less than a quarter of what is typical; z deviations are as unlikely as ERROR allows for a
    vocabulary.
    exact: noise was a floor when it was measured, so a rival must also be further away than 3 times its ceiling.
    """

    noise: Tensor
    tolerance: Tensor
    slope: Tensor
    power: Tensor
    knee: Tensor
    bend: Tensor
    near: Tensor
    within: Tensor
    typical: Tensor
    spread: Tensor
    exact: bool = True

    def bound(self, separation: Tensor, residual: Tensor) -> Tensor:
        """How near the states of two tokens can come whose rows are so far apart, where a true one's residual is so."""
        if self.exact:
            return self.slope * separation
        near = torch.where(separation < _VERY_NEAR * self.knee, self.near, 1.0)
        return self._rise(residual) * near * self._shape(separation)

    def radius(self, distance: Tensor, residual: Tensor) -> Tensor:
        """Within which distance of their rows the states of two tokens can come so near: `bound` turned round."""
        return distance / self.slope if self.exact else self._unshape(distance / self._rise(residual))

    def radius_seen(self, distance: Tensor, apart: Tensor, rows: Tensor) -> Tensor:
        """The same, `[n]`, from what was seen in the very context: states of tokens `apart [n, C]` whose rows are `rows
        [n, C]` apart (∞ for none). ∞ where too few were seen."""
        seen = apart.isfinite() & rows.isfinite() & (rows >= _VERY_NEAR * self.knee[:, None])
        count = seen.sum(-1)
        column = At(*(figure[:, None] for figure in vars(self).values() if isinstance(figure, Tensor)), exact=False)
        above = (apart.clamp_min(1e-30) / column._shape(rows.clamp_min(1e-30))).log().masked_fill(~seen, 0.0)
        deviation = self.within * (1 + 1 / count.clamp_min(1)).sqrt()  # of a further one from the mean of those seen
        rise = (above.sum(-1) / count.clamp_min(1) - _BELOW_SEEN * deviation).exp()
        return self._unshape(distance / rise).masked_fill(self.exact | (count < _SEEN_LEAST), torch.inf)

    def _shape(self, rows: Tensor) -> Tensor:
        """How states grow apart with rows: alike up to the knee, less and less from there."""
        return torch.minimum(rows, self.knee * (rows / self.knee).pow(self.bend))

    def _unshape(self, apart: Tensor) -> Tensor:
        away, edge = torch.maximum(apart, self.knee * (apart / self.knee).pow(1 / self.bend)), _VERY_NEAR * self.knee
        return torch.where(away >= edge, away, torch.minimum(apart / self.near, edge))

    def _rise(self, residual: Tensor) -> Tensor:
        return self.slope * (residual / self.typical).clamp(1 / _NOISE_RANGE, _NOISE_RANGE).pow(self.power)

    def loudness(self, residual: Tensor) -> Tensor:
        """The noise at hand over the loudest that mostly is: at most 1 where nothing speaks against it."""
        return residual / self.tolerance if self.exact else residual / (_NOISE_RANGE * self.typical)

    def deviation(self, residual: Tensor) -> Tensor:
        """Of noise along one direction, standard: what is at hand tells how loud it is here."""
        return self.spread * torch.maximum(residual, self.typical if self.exact else self.typical / _NOISE_RANGE)

    def reach(self, residual: Tensor, z: float) -> Tensor:
        """How near a tried rival has to come to be in question beside a best residual r: √(r² + z²σ²)."""
        directed = (residual.square() + (z * self.deviation(residual)).square()).sqrt()
        return torch.maximum(directed, self._floor())

    def required(self, residual: Tensor, z: float) -> Tensor:
        """How far from the best token's state that of an untried one has to be: zσ + √(z²σ² + r²)."""
        along = z * self.deviation(residual)
        directed = along + (along.square() + residual.square()).sqrt()
        return torch.maximum(directed, residual + self._floor())

    def error(self, residual: Tensor, bound: Tensor, second: Tensor, count: int) -> Tensor:
        """How likely noise makes it another token, at most, fp64: of `count` tokens, with the nearest tried one at
        residual `second` and all untried ones' states at least `bound` away."""
        sigma = self.deviation(residual).double().clamp_min(1e-30)
        residual, bound, second = residual.double(), bound.double(), second.double()
        tried = (second.square() - residual.square()).clamp_min(0).sqrt()
        untried = (bound - residual.square() / bound.clamp_min(1e-30)).clamp_min(0) / 2
        return (count * torch.special.ndtr(-torch.minimum(tried, untried) / sigma)).clamp_max(1.0)

    def _floor(self) -> Tensor:
        return _RUNNER_UP_FACTOR * self.noise if self.exact else torch.zeros_like(self.noise)


def deviations(count: int) -> float:
    """How many standard deviations are so unlikely that `count` rivals together are as likely as ERROR."""
    return -NormalDist().inv_cdf(ERROR / max(1, count))
