"""Op backends of other packages: found by entry point or handed in, and used only within `using`.

One is a column more in `table.py`: `ops.gelu(x, backend="name")` runs it, and within `using` so does every op that is
not told otherwise. Two things are never taken from outside. What a verdict rests on (`residuals`, and the distances
between embedding rows) asks for `backend="own"`. And before the first answer of a function counts, in each precision,
it is held to the reference (`held.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from ..lazy import Registered
from ..types import InputError
from .held import Held
from .recording import is_recording

OWN = ("auto", "own", "triton", "cuda", "cpp", "fused", "reference")
BACKENDS = Registered("invert_fast.backends", "backend", OWN)
_OF_PASSES = ("prefix_attention", "linear", "gelu")  # what a forward pass is made of
_OF_VERDICTS = ("residuals",)


class Backend(Protocol):
    """Ops computed in a way of its own: for another device, or faster on one that is known."""

    @property
    def name(self) -> str:
        """What it is called, `ops.gelu(x, backend=name)`; none of `auto`, `own`, and our own backends."""
        ...

    def function(self, op: str, device: str) -> Callable[..., Any] | None:
        """What computes `op` for tensors on devices of this type (`cpu`, `cuda`, `mps` …), None where nothing does.

        It takes what the op's formula in `invert_fast.kernels.reference` takes, in any floating precision, and gives
        what that gives, with the same ties, gradients (`gelu`, and `prefix_attention` with causal=False) and in place
        (`adam_step`). `packed` is None.
        """
        ...


_in_use: ContextVar[Backend | None] = ContextVar("invert_fast_backend", default=None)
_held: dict[tuple[int, str, str], tuple[Backend, Held | None]] = {}
_made: dict[str, Backend] = {}


@contextmanager
def using(backend: str | Backend) -> Iterator[Backend]:
    """Within it ops run in this backend where it has them: one by the name of its entry point, or one that is handed
    in, whose ops are held to their references once: keep it, rather than making another each time. Open it before a
    model is loaded, so that the trial at load and the calibration run as the inversion will.

    Raises InputError for a name that nobody registered, for what is no `Backend`, and for an op that is not what its
    reference is, when it is first called.
    """
    found = backend_named(backend) if isinstance(backend, str) else _checked(backend, "the backend")
    token = _in_use.set(found)
    try:
        yield found
    finally:
        _in_use.reset(token)


def name_in_use() -> str:
    """Of the backend that ops run in within `using`, empty without."""
    found = _in_use.get()
    return "" if found is None else found.name


def serving(op: str, device: str) -> Held | None:
    """What computes an op that is not told otherwise, where that is from outside. Recordings are of our own."""
    found = _in_use.get()
    return None if found is None or op in _OF_VERDICTS or is_recording() else function_of(found, op, device)


def serves_passes(device: str) -> bool:
    """Whether any part of a forward pass comes from outside: then passes are not replayed as they were recorded."""
    return _in_use.get() is not None and any(serving(op, device) is not None for op in _OF_PASSES)


def names() -> tuple[str, ...]:
    """Of what other packages registered, and of what is in use."""
    found = _in_use.get()
    return (*BACKENDS.points, *([] if found is None else [found.name]))


def function_of(backend: Backend, op: str, device: str) -> Held | None:
    """The function of a backend, held to the reference; None where it has none."""
    key = id(backend), op, device
    if key not in _held:
        call = backend.function(op, device)
        if call is not None and not callable(call):
            raise InputError(f"backend '{backend.name}' gives a {type(call).__name__} for {op}, expected a function")
        _held[key] = backend, None if call is None else Held(op, backend.name, device, call)  # keeps it, and its id
    return _held[key][1]


def backend_named(name: str) -> Backend:
    """The one of another package; InputError where there is none of this name, or it is none."""
    found = _in_use.get()
    if found is not None and found.name == name:
        return found
    if name not in _made:
        made = BACKENDS.load(name)
        made = BACKENDS.make(name) if isinstance(made, type) else made
        _made[name] = _checked(made, BACKENDS.said(name))
    return _made[name]


def _checked(backend: Any, said: str) -> Backend:
    name = getattr(backend, "name", None)
    if not (isinstance(name, str) and name and callable(getattr(backend, "function", None))):
        raise InputError(
            f"{said} is a {type(backend).__name__}, expected an object with a `name` and `function(op, device)` "
            "(invert_fast.extend.Backend)"
        )
    if name in OWN:
        raise InputError(f"{said} calls itself '{name}', which is one of ours: give it a name of its own")
    return backend
