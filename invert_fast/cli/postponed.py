"""What a command would import and never use stays unread until somebody asks for it.

`transformers` brings along PyTorch's compiler, tensors that are spread over machines, SymPy and a look into each of its
own files: half the start of a command. For processes that are ours alone: `entry` calls `postpone`, `main` does not.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
# And what can be imported from inside without it: of imports that go round in circles, not much; None: anything.
POSTPONED = {_COMPILER: {f"{_COMPILER}._trace_wrapped_higher_order_op"}, "transformers.models": None}
_ALONE = "transformers.utils.import_utils"  # where it finds out what is installed
_reading = threading.RLock()


def postpone() -> None:
    """From now on, in this process: what is named in `POSTPONED` is read when the first of its names is asked for, and
    transformers takes it that there is this process alone."""
    if not any(isinstance(finder, Postponing) for finder in sys.meta_path):
        sys.meta_path.insert(0, Postponing(POSTPONED))


class Postponing(MetaPathFinder):
    """Finds modules as they are found anyway. Those of these names are then not read."""

    def __init__(self, names: Mapping[str, Collection[str] | None]):
        self.names = names

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        parent, free = sys.modules.get(fullname.rpartition(".")[0]), self.names.get(fullname.rpartition(".")[0])
        if type(parent) is _Postponed and free is not None and fullname not in free:
            _read(parent)
        if fullname not in self.names and fullname != _ALONE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = (_Alone if fullname == _ALONE else _Later)(spec.loader)
        return spec


class _Alone(Loader):
    """Reads the module as it is, and answers one question for it."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        _give_back(module, self.loader)
        self.loader.exec_module(module)
        module.is_torch_distributed_available = lambda: False  # type: ignore[attr-defined]


class _Later(_Alone):
    """Makes the module, and reads it when that is needed."""

    def exec_module(self, module: ModuleType) -> None:
        _give_back(module, self.loader)
        module.__class__ = _Postponed


def _give_back(module: ModuleType, loader: Loader) -> None:
    assert module.__spec__ is not None
    module.__loader__ = module.__spec__.loader = loader


class _Postponed(ModuleType):
    """A module that has not been read. The first name that is missing has it read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what a module may lack
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if self.__name__ == _COMPILER and name in _MARKS:
            return _MARKS[name]
        with _reading:  # another thread waits for the whole of it
            if "_being_read" in vars(self):
                raise AttributeError(f"module {self.__name__!r} is being read and has no {name!r} yet")
            _read(self)
        return getattr(self, name)


def _read(module: ModuleType) -> None:
    """Unless it has been, or is being read."""
    with _reading:
        if type(module) is not _Postponed or "_being_read" in vars(module):
            return
        assert module.__spec__ is not None
        module._being_read = True  # type: ignore[attr-defined]
        try:
            module.__spec__.loader.exec_module(module)  # type: ignore[union-attr]
        finally:
            del module._being_read  # type: ignore[attr-defined]
        there = sys.modules[module.__name__]
        if there is not module:  # as transformers does
            parent, _, own = module.__name__.rpartition(".")
            setattr(sys.modules[parent], own, there)
        module.__class__ = ModuleType if there is module else _Moved  # type: ignore[assignment]
        for function in _allowed if module.__name__ == _COMPILER else ():
            module.allow_in_graph(function)


class _Moved(ModuleType):
    """A module that has put another in its place."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules[self.__name__], name)


# ---- what functions are marked with for a compiler that nobody has asked for

_allowed: list[Callable] = []


def _constant(function: Callable) -> Callable:
    """`assume_constant_result`, which does no more."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def _allow(function: Callable) -> Callable:
    """`allow_in_graph`, once there is a graph."""
    _allowed.append(function)
    return function


def _disable(function: Callable | None = None, *settings: Any, **named: Any) -> Callable:
    """`disable`: the function as it is, until something could compile it."""
    if function is None:
        return functools.partial(_disable, **named)
    disabled: list[Callable] = []

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        compiler = sys.modules[_COMPILER]
        if isinstance(compiler, _Postponed):
            return function(*arguments, **options)
        if not disabled:
            disabled.append(compiler.disable(function, *settings, **named))
        return disabled[0](*arguments, **options)

    return call


def _graph_break(*_: Any, **__: Any) -> None:
    """`graph_break`, where there is no graph: optimisers call it at every step."""


_MARKS = {
    "assume_constant_result": _constant,
    "allow_in_graph": _allow,
    "disable": _disable,
    "graph_break": _graph_break,
}
