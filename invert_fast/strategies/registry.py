"""Every strategy by the name that users say: a line each here, and whatever installed packages add.

A package adds one by an entry point of the group `invert_fast.strategies`: its name, and as its value what makes the
strategy when it is called without arguments, such as a class whose settings all have defaults. Nothing is imported
before it is asked for: the command line lists these names.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.protocol import Strategy

GROUP = "invert_fast.strategies"
BUILT_IN = {
    "auto": "invert_fast.strategies.auto:auto",
    "speculative": "invert_fast.strategies.speculative:Speculative",
    "continuous": "invert_fast.strategies.continuous:Continuous",
    "sipit": "invert_fast.strategies.per_step:PerStepProjection",
    "prior": "invert_fast.strategies.prior:PriorOrder",
    "exhaustive": "invert_fast.strategies.exhaustive:Exhaustive",
}


@cache
def _registered() -> dict[str, EntryPoint]:
    """By name; a package cannot replace what is built in."""
    added = {point.name: point for point in entry_points(group=GROUP)}
    return {**added, **{name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}}


def names() -> tuple[str, ...]:
    """What `strategy_named` knows: the built-in ones first, then those of other packages."""
    return (*BUILT_IN, *sorted(_registered().keys() - BUILT_IN.keys()))


def strategy_named(name: str | Strategy) -> Strategy:
    """The strategy of a name, with its default settings, or a strategy object as it is.

    Each of the built-in ones ends with the whole vocabulary where it does not get there by itself, except `speculative`
    and `continuous`, which stop at their own limits: alone they show what drafting and one discrete search a position
    can do. Raises InputError for a name that is not registered, and for one whose package cannot make it.
    """
    from ..types import InputError

    if not isinstance(name, str):
        return name
    point = _registered().get(name)
    if point is None:
        raise InputError(f"strategy '{name}' is unknown, expected one of {', '.join(names())}")
    if name in BUILT_IN:
        return point.load()()
    try:
        made = point.load()()
    except Exception as error:  # whatever somebody else's package raises is that package's, and no bug of ours
        raise InputError(
            f"strategy '{name}' of {_package(point)} cannot be made ({type(error).__name__}: {error}), expected a "
            f"callable without arguments at {point.value}: mend or uninstall that package"
        ) from error
    if not (isinstance(getattr(made, "name", None), str) and callable(getattr(made, "bind", None))):
        raise InputError(
            f"strategy '{name}' of {_package(point)} is a {type(made).__name__}, expected an object with a `name` and "
            "`bind(context)` (invert_fast.engine.protocol.Strategy)"
        )
    return made


def _package(point: EntryPoint) -> str:
    dist = getattr(point, "dist", None)
    return "an unnamed package" if dist is None else f"{dist.name} {dist.version}"
