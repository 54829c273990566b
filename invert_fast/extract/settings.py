"""What an extraction is told: the method, the server, or what a model in this process withholds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..types import InputError

NAMES = ("auto", "one-call", "exact", "chosen", "one-of-k", "simultaneous", "top", "bisection")  # see `methods.py`
KEY_VARIABLE = "INVERT_FAST_API_KEY"
DIALECTS = ("auto", "openai", "llama.cpp")


@dataclass(frozen=True)
class Settings:
    """method: one of `NAMES`; precision: bound on the error of a log-prob, nats, that argmax methods work
    for; per_query: most tokens biased in one call by them; tokens: ids that are wanted (None: all); extra: entries
    beyond D + 1 when the unembedding is known."""

    method: str = "auto"
    precision: float = 1e-3
    per_query: int = 1024
    tokens: tuple[int, ...] | None = None
    extra: int = 64
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.precision < 10:
            raise InputError(f"precision is {self.precision:g}, expected nats above 0 and below 10, such as 1e-3")
        if self.per_query < 1:
            raise InputError(f"per_query is {self.per_query}, expected at least 1 token a query")


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. url: the base, such as http://127.0.0.1:8080/v1; model: its name there (None: the first
    that the server lists); chat: messages instead of a plain prompt (`system`: a system message); dialect: `llama.cpp`
    asks for log-probs after bias, `auto` finds out; extra: further fields of every request; vocab_size: where the
    server does not tell; key_variable: the environment variable that holds the key; timeout: seconds."""

    url: str
    model: str | None = None
    chat: bool = False
    system: str | None = None
    dialect: str = "auto"
    extra: dict[str, Any] = field(default_factory=dict)
    vocab_size: int | None = None
    key_variable: str = KEY_VARIABLE
    timeout: float = 120.0


@dataclass(frozen=True)
class Restrictions:
    """What the API withholds.

    top: most log-probs an answer may have (None: all; 0: the token alone); after_bias: log-probs include the bias;
    chosen: the chosen token's log-prob is told even where it is outside the top; bias: whether bias is honoured;
    bias_limit: |bias| beyond it is clamped, or with `refuse` answered by an error; bias_entries: most tokens biased at
    once; temperature: above 0 the token is sampled, not the argmax; noise: standard deviation of a deviation of every
    logit, new at every question (batched serving); decimals: log-probs are rounded; strings: tokens come back as text;
    per_second: questions beyond it are refused with the time to wait.
    """

    top: int | None = None
    after_bias: bool = True
    chosen: bool = True
    bias: bool = True
    bias_limit: float | None = None
    refuse: bool = False
    bias_entries: int | None = None
    temperature: float = 0.0
    noise: float = 0.0
    decimals: int | None = None
    strings: bool = False
    per_second: float | None = None
    seed: int = 0
