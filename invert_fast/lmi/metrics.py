"""How near recovered prompts are to the true ones, as 2311.13647 measures it, with confidence intervals.

BLEU: the mean over prompts of sacrebleu's score of each, with effective order: a prompt of fewer than four words has no
4-grams, and without it even its exact recovery would score 0 (from four words on the two agree wherever some 4-gram
matches). Token F1: of the two sets of word tokens. Exact: the strings are equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..types import InputError

_WORDS = re.compile(r"\w+|[^\w\s]")  # the paper has nltk's word_tokenize, which also splits contractions (do n't)
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over prompts and its 95 % percentile bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class Score:
    """All in per cent: bleu, f1, exact, over so many prompts."""

    prompts: int
    bleu: Interval
    f1: Interval
    exact: Interval


def score(found: Sequence[str], references: Sequence[str], seed: int = 0) -> Score:
    """Recovered prompts against the true ones, in the same order. InputError when there are none or unequally many."""
    if not references or len(found) != len(references):
        raise InputError(f"{len(found)} recovered and {len(references)} true prompts, expected equally many, not none")
    each = np.array([(bleu(a, b), 100 * token_f1(a, b), 100.0 * (a == b)) for a, b in zip(found, references)])  # noqa: B905
    return Score(len(references), *(interval(column, seed) for column in each.T))


def bleu(found: str, reference: str) -> float:
    """sacrebleu of one recovered prompt, 0 to 100."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise InputError("BLEU needs sacrebleu: pip install 'invert_fast[logits]'") from error
    return BLEU(effective_order=True).sentence_score(found, [reference]).score


def token_f1(found: str, reference: str) -> float:
    """F1 of the sets of word tokens, 0 to 1: order and repetition do not count."""
    ours, true = set(_WORDS.findall(found)), set(_WORDS.findall(reference))
    both = len(ours & true)
    return 2 * both / (len(ours) + len(true)) if both else 0.0


def interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean of `[n]` and where 95 % of the means of resampled prompts lie. The resamples depend on n and seed alone, so
    that two systems on the same prompts are resampled alike."""
    rows = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(values[rows].mean(1), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))
