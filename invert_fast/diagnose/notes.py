"""What shows of states that no option corrects: vectors of whole texts, other weights, rows that are missing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import States
from .evidence import Fit
from .trial import Trials

_EQUAL = 1e-6  # relative: rows so near to each other are one
_NEAR = 0.5  # residuals below: most of the text is right
_ENOUGH = 4  # rows that say how residuals are spread
_FIRST = 2.0  # times the middle residual, that of the first row: it has a past that is not here
_ALIKE = 8.0  # times the smaller, the larger residual of the middle eight tenths of the rows


def repeated(rows: Tensor) -> bool:
    """Whether several rows `[T, D]` are one."""
    apart, length = (rows - rows[:1]).norm(dim=-1).max(), rows[0].norm().clamp_min(1e-30)
    return len(rows) > 1 and float(apart) <= _EQUAL * float(length)


def notes_on(trials: Trials, states: States, near: Fit | None, lost: bool) -> tuple[str, ...]:
    """Sentences. near: the nearest fit of all that was compared; lost: no hypothesis certifies."""
    rows, fingerprint = trials.rows, trials.given.decoder.fingerprint()
    said = []
    if states.model is not None and states.model != fingerprint:
        said.append(f"the states say that they are of model {states.model}, this one is {fingerprint}")
    if not lost:
        pass
    elif len(rows) == 1:
        said.append(
            "there is one row: unless a text has one token it is the state of a last token, or a mean over a text, "
            "which cannot be inverted here; capture the states of all tokens, or give the next-token log-probs of a "
            "prompt of about five tokens to `invert-fast logits search`"
        )
    elif repeated(rows):
        said.append(
            "all rows are equal: a vector of the whole text (a last token's or a mean) was repeated, which cannot be "
            "inverted here; capture the states of every token"
        )
    elif near is not None and len(near.residuals) >= _ENOUGH and near.score < _NEAR:
        said += _of_near(trials, near)
    return tuple(said)


def _of_near(trials: Trials, near: Fit) -> list[str]:
    """Of states that are near the model's, and not near enough: by where they are further off."""
    first, rest = float(near.residuals[0]), near.residuals[1:]
    low, middle, high = torch.quantile(rest, torch.tensor([0.1, 0.5, 0.9]).to(rest)).tolist()
    count = near.hypothesis.reading.position_offset
    off = f"{near.hypothesis.sentence(trials.layer)}, but for {100 * middle:.2g} % of their length"
    if first > _FIRST * middle:
        missing = f"some {count} rows" if count else "rows"
        return [
            f"{off} and {100 * first:.2g} % at the first row: the text seems to begin before it, and {missing} of "
            "unknown tokens are missing; capture from the first token on, or name those before it (--prefix)"
        ]
    if high < _ALIKE * low:
        return [
            f"{off} at all positions alike: weights that differ (an adapter, a fine-tuned sibling, a coarse "
            "quantisation), which cannot be corrected; give the very weights that made them"
        ]
    return []
