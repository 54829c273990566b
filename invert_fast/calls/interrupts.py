"""Ctrl-C that comes out as another error: what is imported just then may turn it into one (until Python 3.12, whatever
a class is made of raises a RuntimeError). Whoever goes on in another way after an error asks first."""

from __future__ import annotations

_LONGEST = 100  # errors that came of each other


def raise_interrupt(error: BaseException) -> None:
    """Raises KeyboardInterrupt where an error came of one; to be called before going on without what failed."""
    found: BaseException | None = error
    for _ in range(_LONGEST):
        if found is None:
            return
        if isinstance(found, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        found = found.__cause__ or found.__context__
