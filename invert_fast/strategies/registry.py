"""Every strategy by the name that users say: a line each here, and whatever installed packages add.

A package adds one by an entry point of the group `invert_fast.strategies`: its name, and as its value what makes the
strategy when it is called without arguments, such as a class whose settings all have defaults. Nothing is imported
before it is asked for: the command line lists these names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..lazy import Registered

if TYPE_CHECKING:
    from ..engine.protocol import Strategy

BUILT_IN = {
    "auto": "invert_fast.strategies.auto:auto",
    "speculative": "invert_fast.strategies.speculative:Speculative",
    "beam": "invert_fast.strategies.beam:Beam",
    "continuous": "invert_fast.strategies.continuous:Continuous",
    "sipit": "invert_fast.strategies.per_step:PerStepProjection",
    "prior": "invert_fast.strategies.prior:PriorOrder",
    "exhaustive": "invert_fast.strategies.exhaustive:Exhaustive",
}
STRATEGIES = Registered("invert_fast.strategies", "strategy", BUILT_IN)


def names() -> tuple[str, ...]:
    """What `strategy_named` knows: the built-in ones first, then those of other packages."""
    return STRATEGIES.names()


def strategy_named(name: str | Strategy) -> Strategy:
    """The strategy of a name, with its default settings, or a strategy object as it is.

    Each of the built-in ones ends with the whole vocabulary where it does not get there by itself, except `speculative`
    and `continuous`, which stop at their own limits: alone they show what drafting and one discrete search a position
    can do. Raises InputError for a name that is not registered, for one whose package cannot make it, and for an object
    that is no strategy.
    """
    from ..types import InputError

    if isinstance(name, str) and name in BUILT_IN:
        module, _, made_by = BUILT_IN[name].partition(":")
        return getattr(import_module(module), made_by)()
    made, said = (STRATEGIES.make(name), STRATEGIES.said(name)) if isinstance(name, str) else (name, "the strategy")
    if not (isinstance(getattr(made, "name", None), str) and callable(getattr(made, "bind", None))):
        raise InputError(
            f"{said} is a {type(made).__name__}, expected an object with a `name` and `bind(context)` "
            "(invert_fast.extend.Strategy)"
        )
    return made
