"""What an API can be asked about the next token, what it answers, and how it fails.

The four capabilities are forms of one question: argmax (`top=0`), top-k log-probs (`top=k`), logit bias (`bias`), the
full vector (`top=vocab_size`). What an API really honours is measured (`capabilities.py`), never believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..types import InputError

Prompt = str | tuple[int, ...]
UNKNOWN = -1  # a token whose name does not tell its id


@dataclass(frozen=True)
class Query:
    """One question: the next token after `prompt`, with `bias` (token id → nats) added to the logits.

    top: how many log-probs to return; 0 asks for the chosen token alone.
    """

    prompt: Prompt
    bias: Mapping[int, float] = field(default_factory=dict)
    top: int = 0


@dataclass(frozen=True)
class Answer:
    """token: id of the chosen token (UNKNOWN where its name is shared by several); ids, log_probs `[n]`: the list that
    came with it, most likely first, nats; chosen_log_prob: what was said of the chosen token, NaN where nothing was."""

    token: int
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    log_probs: np.ndarray = field(default_factory=lambda: np.zeros(0))
    chosen_log_prob: float = float("nan")

    def log_prob(self, token: int) -> float:
        """What this answer says of a token, NaN where it says nothing."""
        at = np.flatnonzero(self.ids == token)
        if len(at):
            return float(self.log_probs[at[0]])
        return self.chosen_log_prob if token == self.token else float("nan")


class Api(Protocol):
    """One model behind an interface. `ask` may be called from several threads at once.

    name: what is written into progress files (no key, no prompt); vocab_size: ids are 0…vocab_size−1;
    names: how tokens come back, `ids` or `strings`; untellable: tokens that an answer cannot tell from one another, of
    which a query biases at most one.
    """

    name: str
    vocab_size: int
    names: str
    untellable: frozenset[int]

    def ask(self, query: Query) -> Answer:
        """Raises an ApiError: RefusedError for what this API will never answer, UnavailableError for what may pass."""
        ...


class ApiError(InputError):
    """The API did not answer, or not in a way that can be used. Not worth another try unless it is UnavailableError."""


class RefusedError(ApiError):
    """The API will not answer this question (a parameter over its limit, an unknown model)."""


class UnauthorisedError(ApiError):
    """The API wants a key, or another one."""


class MalformedError(ApiError):
    """An answer that is complete but lacks what was asked for."""


class UnavailableError(ApiError):
    """A passing failure: connection lost, server error, an answer cut short. Tried again."""


class RateLimitedError(UnavailableError):
    """Too many requests; `retry_after` is the API's own word on how long to wait, in seconds, or None."""

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class BudgetSpentError(ApiError):
    """The query budget is used up: what is known by then is kept."""


_MOST_LOG_PROB, _MOST_SUM = 1e-3, 1.25  # of one; of the probabilities of a list, rounded to a tenth of a nat at worst


def checked(answer: Answer, api: Api) -> Answer:
    """An answer that can be one, whoever gave it; MalformedError for what no distribution gives."""
    ids, values = answer.ids, answer.log_probs
    if ids.shape != values.shape or ids.ndim != 1:
        raise MalformedError(f"{api.name} told {len(ids)} tokens and {len(values)} log-probs, expected one of each")
    told = [answer.token] * (answer.token != UNKNOWN) + ([int(ids.min()), int(ids.max())] if len(ids) else [])
    if bad := [token for token in told if not 0 <= token < api.vocab_size]:
        raise MalformedError(f"{api.name} told token {bad[0]}, expected ids from 0 to {api.vocab_size - 1}")
    if api.names == "ids" and len(np.unique(ids)) < len(ids):
        raise MalformedError(f"{api.name} told a token twice in one list, expected each once")
    for value in (answer.chosen_log_prob, *((float(values.max()),) if len(values) else ())):
        if value > _MOST_LOG_PROB:
            raise MalformedError(f"{api.name} told a log-prob of {value:g}, expected 0 or less: are these logits?")
    if np.isnan(values).any():
        raise MalformedError(f"{api.name} told log-probs that are no numbers, expected nats")
    if len(values) and api.names == "ids" and (total := float(np.exp(values).sum())) > _MOST_SUM:
        raise MalformedError(f"{api.name} told probabilities that sum to {total:.3g}, expected at most 1")
    return answer
