"""Recoveries, scores and diagnoses as pandas tables; pandas is an extra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..types import InputError, Recovery, Status
from .pieces import pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .score import Score


def frame(columns: Mapping[str, Any]) -> Any:
    """A `pandas.DataFrame` of columns by name. InputError where pandas is not installed."""
    try:
        import pandas as pd  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("to_pandas needs pandas, which is not installed: pip install 'invert_fast[pandas]'") from error
    return pd.DataFrame(columns)


def of_recovery(found: Recovery) -> Any:
    """A row a position. token: the text that it adds, of several that make one character the last's; None without a
    tokenizer."""
    token: list[str | None] = [None] * len(found.token_ids)
    for piece in [] if found.spelling is None else pieces(found.token_ids.tolist(), found.spelling):
        token[piece.start : piece.stop] = [*[""] * (piece.stop - piece.start - 1), piece.text]
    every = range(len(token))
    columns = {
        "position": every,
        "token_id": found.token_ids,
        "token": token,
        "status": [Status(int(status)).label for status in found.status],
        "residual": found.residual,
        "margin": found.margin,
        "discrete_loss": found.discrete_loss,
        "rank": found.rank,
        "steps": found.steps,
        "alternatives": [found.alternatives.get(position, []) for position in every],
    }
    if found.error_bound is not None:
        columns["error_bound"] = found.error_bound
    if found.posterior is not None:
        columns["posterior"] = found.posterior
    return frame(columns)


def of_score(score: Score) -> Any:
    """A row a text."""
    names = ("tokens", "exact", "token_accuracy", "similarity", "certified", "reference", "text")
    return frame({name: [getattr(one, name) for one in score.texts] for name in names})
