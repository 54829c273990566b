"""What runs in a process of its own on one device: it opens the job and does what it is told, until its pipe closes.

It is told `check`, `prepare`, `run` and `stop`, answers each with `ready`, and takes texts, a few at a time, while it
runs. Nothing of PyTorch is imported before the process knows how many threads it has.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from typing import TYPE_CHECKING, Any

from ..types import InputError
from .job import Job

if TYPE_CHECKING:
    from .session import Session


@dataclass(frozen=True)
class Place:
    """Where a worker stands. device: None for cuda when there is one; threads: that it may use; sharing: processes that
    the device has; first: it shows the progress of what is measured once; cache: the cache folder of all; as_line: what
    is found is told as its line."""

    device: str | None
    threads: int
    sharing: int
    first: bool
    cache: str
    as_line: bool


def serve(job: Job, place: Place, pipe: connection.Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it, which ends it
    os.environ |= {"OMP_NUM_THREADS": str(place.threads), "INVERT_FAST_CACHE": place.cache}
    if not place.first:
        os.environ["TQDM_DISABLE"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told = _Pipe(pipe)
    try:
        _say_through(told)
        _obey(job, place, told)
    except InputError as error:
        told.say("refused", str(error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody is there to be told
    except Exception as error:
        told.say("broke", (f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", traceback.format_exc()))


class _Pipe:
    """To the process that started this one."""

    def __init__(self, pipe: connection.Connection):
        self._pipe, self._lock = pipe, threading.Lock()

    def say(self, kind: str, what: Any = None) -> None:
        with self._lock:
            self._pipe.send((kind, what))

    def hear(self) -> Any:
        return self._pipe.recv()


def _obey(job: Job, place: Place, told: _Pipe) -> None:
    session = _opened(job, place)
    told.say("opened", session.about())
    while True:
        what, details = told.hear()
        if what == "stop":
            return
        if what == "check":
            session.check(details)
        elif what == "prepare":
            session.prepare()
        elif what == "run":
            lanes, longest = details
            for each in session.recover(_taken(told), [longest] * lanes, place.as_line):
                told.say("found", each)
        told.say("ready", what)


def _opened(job: Job, place: Place) -> Session:
    gc.disable()  # modules and a model are a million objects that stay: looking for garbage takes a third of the time
    try:
        import torch
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its own is one between processes, left behind by one that is ended
        torch.set_num_threads(place.threads)  # of a program that had imported it before
        from .session import Session

        return Session(job, place.device, place.sharing)
    finally:
        gc.enable()


def _taken(told: _Pipe) -> Iterator[int]:
    """Texts, until none is left to take."""
    while True:
        told.say("take")
        texts = told.hear()
        if not texts:
            return
        yield from texts


def _say_through(told: _Pipe) -> None:
    """What is logged is said by the process that started this one, beside its progress bar."""

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.say("log", (record.levelno, record.getMessage()))

    log = logging.getLogger("invert_fast")
    log.handlers, log.propagate = [Said()], False
    log.setLevel(logging.DEBUG)  # that process says what it was asked to


def _end_with_parent() -> None:
    """A worker must not outlive whoever would hear of what it finds, however that ended."""
    parent = parent_process()
    assert parent is not None, "a worker is started by multiprocessing"
    connection.wait([parent.sentinel])
    os._exit(1)
