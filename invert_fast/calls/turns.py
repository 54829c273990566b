"""Whose turn it is: calls on one model, from whatever threads, come one after the other, under the usual settings.

A call that gives all at once is one turn. One that gives results as they come is a turn a step, so that whoever stops
reading in the middle keeps nobody waiting; and while such a call asks the caller for its next text, it is nobody's
turn: the text may come from a thread that needs the model to make it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import isfunction
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from ..types import InputError
from .settings import usual_settings

NOT_COPIED = (
    "an Inverter cannot be copied or pickled, its model would be: make one where it is needed, by "
    "Inverter.from_pretrained; States and recoveries can be pickled"
)
_END = object()
_Class = TypeVar("_Class", bound=type)
_Item = TypeVar("_Item")


class Turns:
    """The turns on one model: a context, which the thread that is in it may enter again."""

    def __init__(self, model: nn.Module):
        self._model, self._cuda = ref(model), any(weight.is_cuda for weight in model.parameters())
        self._lock, self._depth, self._aside = threading.RLock(), 0, ExitStack()
        self._made_in = self._process = os.getpid()
        self._left: list[Any] = []  # iterators that were let go of in somebody else's turn

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._forked()
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            try:
                self._aside.enter_context(usual_settings(self._model()))
                if self._made_in != self._process:
                    _one_thread(self._aside)
            except BaseException:
                self._aside.close()
                self._depth -= 1
                self._lock.release()
                raise

    def __exit__(self, *_: object) -> None:
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # Ctrl-C while waiting to be in it again
            return
        try:
            if self._depth == 1:
                try:
                    self._close_left()
                finally:
                    self._aside.close()
        finally:
            self._depth -= 1
            self._lock.release()

    def steps(self, results: Iterator[_Item]) -> Iterator[_Item]:
        """The same results, each computed in a turn of its own. Letting go of them frees what they hold."""
        try:
            while True:
                with self:
                    item = next(results, _END)
                if item is _END:
                    return
                yield item  # type: ignore[misc]
        except GeneratorExit:
            self._let_go(results)
            raise

    def outside(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """What the caller gives, asked for while it is nobody's turn, and under the caller's own settings."""
        source = iter(items)
        while True:
            with self._given_up():
                item = next(source, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]

    @contextmanager
    def _given_up(self) -> Iterator[None]:
        if self._depth != 1:  # a step of a call that is one turn
            yield
            return
        gradients = torch.is_grad_enabled()  # in the midst of the call, where they may be off
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()
            torch.set_grad_enabled(gradients)

    def _let_go(self, results: Any) -> None:
        """Close an iterator, which puts away what it holds. This may be the garbage collector's doing, at any moment
        and in any thread: then it must wait for nobody, nor come between the steps of a turn."""
        if not hasattr(results, "close"):
            return
        if self._lock.acquire(blocking=False):
            try:
                if not self._depth:
                    with self:
                        results.close()
                    return
            finally:
                self._lock.release()
        self._left.append(results)

    def _close_left(self) -> None:
        while self._left:
            self._left.pop().close()

    def _forked(self) -> None:
        """In a child: threads of the parent, who may have been in a turn, are no more."""
        if self._cuda:
            raise InputError(
                "this inverter was made before the process was forked, and CUDA does not work in both: make it in the "
                "new process, or start that by multiprocessing's 'spawn'"
            )
        self._process = os.getpid()
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock, self._depth, self._aside = threading.RLock(), 0, ExitStack()


def _one_thread(aside: ExitStack) -> None:
    """OpenMP's threads are not there in a forked child, and a call that asks for them waits for ever."""
    if (threads := torch.get_num_threads()) > 1:
        torch.set_num_threads(1)
        aside.callback(torch.set_num_threads, threads)


_of: WeakKeyDictionary[nn.Module, Turns] = WeakKeyDictionary()
_made = threading.Lock()


def turns_of(model: nn.Module) -> Turns:
    """Those of a model, whoever looks at it: inverters of several of its layers share them."""
    with _made:
        if model not in _of:
            _of[model] = Turns(model)
        return _of[model]


def taking_turns(cls: _Class) -> _Class:
    """A class whose objects have `_turns`: each of its public methods is a turn, what it yields is a turn a step."""
    for name, method in list(vars(cls).items()):
        if isfunction(method) and not name.startswith("_"):
            setattr(cls, name, _in_turn(method))
    return cls


def _in_turn(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def called(self, *args: Any, **named: Any) -> Any:
        with self._turns:
            found = method(self, *args, **named)
        return self._turns.steps(found) if isinstance(found, Iterator) else found

    return called
