"""The table of methods: what each needs, what it should cost, and which is cheapest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..types import InputError
from .bisection import FIRST_BRACKET, bisection
from .capabilities import Capabilities
from .settings import NAMES
from .simultaneous import simultaneous
from .told import chosen, exact, one_call, one_of_k
from .work import Work


@dataclass(frozen=True)
class Ask:
    """What is to be found: `tokens` gaps to `precision` nats, at most `per_query` biased at once; of `vocab_size`."""

    tokens: int
    precision: float
    per_query: int
    vocab_size: int


@dataclass(frozen=True)
class Method:
    """lacks: why it does not work with these capabilities, or None; theory: queries it should take; note: what that
    number is."""

    name: str
    run: Callable[[Work], None]
    lacks: Callable[[Capabilities], str | None]
    theory: Callable[[Capabilities, Ask], float]
    note: str


def _bits(ask: Ask) -> float:
    return math.log2(FIRST_BRACKET / ask.precision)


def _grouped(found: Capabilities, ask: Ask) -> int:
    return max(1, min(found.bias_entries, ask.per_query, ask.tokens))


def _no_argmax(found: Capabilities) -> str | None:
    if not found.bias:
        return "logit bias, which this API ignores or refuses"
    if found.sampled:
        return "an argmax, and this API samples: ask for temperature 0, or use a method that needs log-probs"
    return None if found.bias_limit > 0 else "a larger logit bias than this API's clamp allows"


METHODS = {
    method.name: method
    for method in (
        Method(
            "one-call",
            one_call,
            lambda found: None if found.full else f"all log-probs in one call, and this API gives {found.top}",
            lambda found, ask: 1.0,
            "one call",
        ),
        Method(
            "exact",
            exact,
            lambda found: (
                None
                if found.after_bias and min(found.top, found.bias_entries) > 1
                else "two or more log-probs after bias"
            ),
            lambda found, ask: ask.tokens / (min(found.top, found.bias_entries) - 1),
            "n / (k − 1)",
        ),
        Method(
            "chosen",
            chosen,
            lambda found: None if found.chosen else "the chosen token's log-prob without its bias",
            lambda found, ask: ask.tokens,
            "n",
        ),
        Method(
            "one-of-k",
            one_of_k,
            lambda found: (
                None
                if found.after_bias and found.top and found.bias_limit > 0
                else "a log-prob after bias, and a bias that is not clamped away"
            ),
            lambda found, ask: ask.tokens,
            "n, once the right bias is known",
        ),
        Method(
            "simultaneous",
            simultaneous,
            _no_argmax,
            lambda found, ask: ask.tokens * _bits(ask) / math.log2(_grouped(found, ask) + 1),
            "n log₂(32/ε) / log₂(N + 1)",
        ),
        Method(
            "top",
            one_call,
            lambda found: None if found.top else "log-probs, and this API gives none",
            lambda found, ask: math.inf,  # never complete, so last
            "one call, the k most likely tokens only",
        ),
        Method("bisection", bisection, _no_argmax, lambda found, ask: ask.tokens * _bits(ask), "n log₂(32/ε)"),
    )
}
assert ("auto", *METHODS) == NAMES, "settings.NAMES lists them for the command line"
SEARCHES = ("simultaneous", "bisection")  # what a precision must be paid for


def pick(name: str, found: Capabilities, ask: Ask) -> Method:
    """The method of this name, or for `auto` the one that should cost least. InputError where none works."""
    usable = {method.name: method.theory(found, ask) for method in METHODS.values() if method.lacks(found) is None}
    if name != "auto":
        if name not in METHODS:
            raise InputError(f"method '{name}' is unknown, expected one of {', '.join(NAMES)}")
        lacks = METHODS[name].lacks(found)
        if lacks:
            could = f"use {' or '.join(usable)}" if usable else "no method works with this API"
            raise InputError(f"method '{name}' needs {lacks}: {could}")
        return METHODS[name]
    if not usable:
        hint = " (or it is asked with another model's tokenizer)" if found.names == "strings" and not found.bias else ""
        raise InputError(f"this API gives {found.describe()}: not enough for any method{hint}")
    return METHODS[min(usable, key=usable.__getitem__)]
