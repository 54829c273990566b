"""How a learned lens is trained, and what a fit came to."""

from __future__ import annotations

from dataclasses import dataclass

from ..types import InputError, dtype_named

HEAD = 64  # width of an attention head of the learned lens


@dataclass(frozen=True)
class Fit:
    """How a learned lens is trained, or a linear one made better.

    width, layers: of its transformer (None: 128 and 1 where the linear lens drafts nine of ten held-out tokens right,
    else 192 and 2: where there is more to correct, a second layer saves more repairs than it costs; of a large
    vocabulary 256 and 2); steps: at most so many (None: 1,500, fewer when held-out texts stop gaining; of a large
    vocabulary what there is time for); minutes: wall time at most, sampling left out (of the linear lens and of a large
    vocabulary all in all, None: 15); states_dtype: precision that its states will be stored in, `any` for all in
    turn; noise: standard deviation of Gaussian noise on them, relative to the RMS of each; seed.
    Equal settings give the equal lens, unless `minutes` cuts the training short.
    """

    width: int | None = None
    layers: int | None = None
    steps: int | None = None
    minutes: float | None = None
    states_dtype: str = "any"
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.width is not None and (self.width < 1 or (self.width > HEAD and self.width % HEAD)):
            raise InputError(f"a lens of width {self.width}, expected at most {HEAD} or a multiple of it")
        if self.layers is not None and self.layers < 1:
            raise InputError(f"a lens of {self.layers} layers, expected 1 or more")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"{self.steps} steps, expected 1 or more")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"{self.minutes} minutes, expected more than 0")
        if not 0 <= self.noise <= 10:
            raise InputError(f"noise {self.noise}, expected 0 or a fraction of the states' RMS, such as 0.05")
        if self.states_dtype != "any":
            dtype_named(self.states_dtype)


@dataclass(frozen=True)
class FitReport:
    """What a fit came to. top1, top16: shares of held-out tokens whose right candidate is the first, or among the first
    sixteen: `written` by the model (or from the texts that were given) and `random`; linear: top-1 of the linear lens
    on both; steps taken; seconds; path of the lens, None when the cache is off; better: than the lens before, else that
    one goes on being used. Of a large vocabulary, and of a linear lens that was given minutes (`deeper`), there is one
    kind of tokens, `held out`; of the latter, `linear` is what the lens before drafted right, and steps are rounds of
    texts."""

    top1: dict[str, float]
    top16: dict[str, float]
    linear: dict[str, float]
    steps: int
    seconds: float
    path: str | None
    deeper: bool = False
    better: bool = True
