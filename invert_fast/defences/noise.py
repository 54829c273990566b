"""Noise that is added to every number: normal, Laplacian, and as much as differential privacy asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..types import InputError
from .base import Defence

_TINY = 1e-30
_HALVINGS = 200


@dataclass(frozen=True)
class Gaussian(Defence):
    """Normal noise. strength: its standard deviation over the root mean square of each row, so that it is the relative
    residual of the row, on average. Raises InputError below zero."""

    strength: float
    name = "gaussian"

    def __post_init__(self):
        at_least_zero(self.name, self.strength)

    def rows(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(hidden.shape, generator=generator)
        return hidden + self.strength * root_mean_square(hidden) * noise


@dataclass(frozen=True)
class Laplace(Defence):
    """Laplacian noise, as loud as `Gaussian` noise of the same strength, with heavier tails."""

    strength: float
    name = "laplace"

    def __post_init__(self):
        at_least_zero(self.name, self.strength)

    def rows(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        even = torch.rand(hidden.shape, generator=generator, dtype=torch.float64) - 0.5
        noise = -even.sign() * torch.log1p(-2 * even.abs().clamp_max(0.5 - 1e-16)) / math.sqrt(2)
        return hidden + self.strength * root_mean_square(hidden) * noise.float()


@dataclass(frozen=True)
class Private(Defence):
    """The analytic Gaussian mechanism (Balle and Wang, 1805.06530, theorem 8): each row is shortened to the length
    `clip` where it is longer, and gets the least normal noise with which it is (epsilon, delta)-private.

    Any row may stand in the place of any other, so what is private is one row: its sensitivity is 2 clip. The rows of
    one text say much of each other, and T of them are no better protected than T answers about one thing: (T epsilon, T
    delta) for a whole text, by simple composition. Raises InputError unless clip and epsilon are above 0 and delta
    between 0 and 1.
    """

    clip: float
    epsilon: float
    delta: float
    name = "private"

    def __post_init__(self):
        if not (0 < self.clip < math.inf and 0 < self.epsilon < math.inf and 0 < self.delta < 1):
            raise InputError(
                f"private:{self.clip:g}:{self.epsilon:g}:{self.delta:g} is no mechanism, expected "
                "private:CLIP:EPSILON:DELTA with a length and an epsilon above 0 and a delta between 0 and 1, for "
                "example private:8:4:1e-5"
            )

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, in the units of the states."""
        return gaussian_sigma(self.epsilon, self.delta, 2 * self.clip)

    def rows(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        length = hidden.norm(dim=-1, keepdim=True).clamp_min(_TINY)
        clipped = hidden * (self.clip / length).clamp_max(1.0)
        return clipped + self.sigma * torch.randn(hidden.shape, generator=generator)


def gaussian_delta(sigma: float, epsilon: float, sensitivity: float) -> float:
    """The delta of normal noise: Φ(Δ/2σ − εσ/Δ) − e^ε Φ(−Δ/2σ − εσ/Δ), exact for every epsilon."""
    half, away = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    both = torch.tensor([half - away, -half - away], dtype=torch.float64)
    one, other = torch.special.log_ndtr(both).tolist()
    return math.exp(one) - math.exp(min(epsilon + other, one))


@cache
def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """The least standard deviation of normal noise that is (epsilon, delta)-private, for an L2 sensitivity: unlike
    Δ √(2 ln(1.25/δ)) / ε, the classic one, it holds above epsilon 1 as well and is less below. Found by bisection, and
    rounded up."""
    low, high = 1e-12 * sensitivity, sensitivity
    while gaussian_delta(high, epsilon, sensitivity) > delta:
        high *= 2
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if gaussian_delta(middle, epsilon, sensitivity) > delta:
            low = middle
        else:
            high = middle
    return high


def root_mean_square(hidden: Tensor) -> Tensor:
    """Of each row, `[T, 1]`."""
    return hidden.square().mean(-1, keepdim=True).sqrt()


def at_least_zero(name: str, strength: float) -> None:
    if not 0 <= strength < math.inf:
        raise InputError(
            f"{name}:{strength:g} is no strength, expected a number of 0 or more: the deviation of the noise over the "
            f"root mean square of a row, for example {name}:0.05"
        )
