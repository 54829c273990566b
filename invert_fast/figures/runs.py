"""The searches that figures are drawn from, each as plain data: what was found, and what it left behind on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.trace import first_failure, true_ranks
from ..inverter import Inverter
from ..reports.pieces import added
from ..reports.score import score
from ..strategies.continuous import Continuous
from ..types import Recovery, Spelling
from .published import OPERATING_POINTS, VOCABULARY

PLAIN, SHORT = "plain", "short"
BUDGETS = (4, 8, 16, 32, 64, 125, 250, 500, 1000, 2000)  # K of Figure 3, and below, for models that are easier
BASELINE, LONGEST = 1000, 2000
SHORT_STEPS, SHORT_PROMPTS = 12, 6  # of the search that is cut short, with C = 1; and on how many times as many prompts
_KEPT = 100  # points of a loss curve and of a rank trajectory, about
_SPELT_AFTER = 8

Run = dict[str, Any]
"""settings: of the search; exact, similarity: of the prompts; seconds; prompts: a dict each of ids, found (ids), tokens
(their text), wrong (the first wrong position, None), detected (the same by the discrete loss), cumulative (discrete
loss), and for each position loss and rank (of the true token), both every `stride` steps and at the end."""


@dataclass(frozen=True)
class Plan:
    """Which searches, on which prompts. prompts: token ids, all of one length; more: others, that the cheap search of
    few steps is given as well; candidates: C of all searches but that one; seed: of random starts (there are none from
    zeros)."""

    prompts: list[list[int]]
    more: list[list[int]]
    candidates: int
    seed: int = 42
    budgets: tuple[int, ...] = BUDGETS
    longest: int = LONGEST
    baseline: int = BASELINE
    short: int = SHORT_STEPS

    def searches(self) -> dict[str, tuple[Continuous, list[list[int]]]]:
        """By key, cheapest first: so that a run that is stopped has most of them."""
        common: dict[str, Any] = {"seed": self.seed, "trace": True}
        made = {SHORT: (Continuous(self.short, 1, **self._traced(self.short), **common), [*self.prompts, *self.more])}
        for steps in self.budgets:
            made[by_steps(steps)] = Continuous(steps, self.candidates, **self._traced(steps), **common), self.prompts
        plain = Continuous(
            *(self.baseline, self.candidates), anneal=False, clip=None, **self._traced(self.baseline), **common
        )
        return {**made, PLAIN: (plain, self.prompts)}

    @staticmethod
    def _traced(steps: int) -> dict[str, int]:
        return {"trace_stride": max(1, steps // _KEPT)}


def by_steps(steps: int) -> str:
    """The key of the search with that budget."""
    return f"K = {steps}"


def papers_share(size: int) -> int:
    """C of a vocabulary: as much of it as the paper's baseline has of GPT-2's."""
    return max(1, round(OPERATING_POINTS["baseline"][1] * size / VOCABULARY))


def search(inverter: Inverter, strategy: Continuous, prompts: Sequence[list[int]]) -> Run:
    """All prompts side by side, from states of a single batched pass each."""
    states = inverter.capture(prompts)
    start = time.perf_counter()
    found = inverter.invert(states, strategy, batch_size=min(64, len(prompts)))
    seconds = time.perf_counter() - start
    decode = inverter.decoder.decode
    result = score(found, [(ids, decode(ids) or "") for ids in prompts])
    return {
        "settings": {
            "steps": strategy.steps,
            "candidates": strategy.candidates,
            "anneal": strategy.anneal,
            "clip": strategy.clip,
            "stride": strategy.trace_stride,
            "metric": strategy.metric,
        },
        "exact": result.exact_match,
        "similarity": result.similarity,
        "seconds": round(seconds, 1),
        "prompts": [_prompt(inverter, r, ids, strategy.trace_stride) for r, ids in zip(found, prompts, strict=True)],
    }


def _prompt(inverter: Inverter, recovery: Recovery, ids: list[int], stride: int) -> dict[str, Any]:
    trace = recovery.trace
    assert trace is not None, "the search was asked for a trace"
    right = recovery.token_ids == np.array(ids)
    if recovery.certified and not right.all():
        raise AssertionError(f"a prompt is certified and wrong ({ids}): stop, and report this as a bug")
    wrong = None if right.all() else int(np.flatnonzero(~right)[0])
    judged = len(ids) if wrong is None else wrong + 1  # behind it every search had another prefix
    ranks = true_ranks(trace, ids, inverter.vocabulary.embedding)  # type: ignore[arg-type]
    return {
        "ids": ids,
        "found": recovery.token_ids.tolist(),
        "tokens": spelt(inverter, ids),
        "wrong": wrong,
        "detected": first_failure(recovery.discrete_loss, recovery.loss_ceiling),
        "cumulative": _short(recovery.cumulative_loss),
        "steps": [len(loss) for loss in trace["loss"][:judged]],
        "loss": [_short([*loss[::stride], loss[-1]]) for loss in trace["loss"][:judged]],
        "rank": [[] if rank is None else rank.tolist() for rank in ranks[:judged]],
    }


def spelt(inverter: Inverter, ids: list[int]) -> list[str]:
    """What each token adds to the text before it; its number without a tokenizer."""
    if (tokenizer := inverter.decoder.tokenizer) is None:
        return [*map(str, ids)]
    spell = Spelling(tokenizer)
    return [added(ids[max(0, t - _SPELT_AFTER) : t], [token], spell) for t, token in enumerate(ids)]


def _short(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Four digits; None for what is not finite."""
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in map(float, values)]
