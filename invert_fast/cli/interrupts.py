"""Ctrl-C at any moment of a command: one line, exit status 130, and no traceback, wherever the signal strikes.

The first one unwinds (files are put away), the second one ends the process at once, which costs nothing either: what is
on disk is whole at every moment.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

STATUS = 130
_AGAIN = 0.05  # seconds until an interrupt that nobody could raise is tried again


class Interrupts:
    """While entered, of the main thread alone, and where SIGINT is not ignored. came: whether there was one.

    What runs meanwhile may turn a KeyboardInterrupt into another error (modules that are being imported do), or drop it
    (finalisers): whoever catches an error asks `came`, and what was dropped is raised again a little later.
    """

    def __init__(self):
        self.came = False

    def __enter__(self) -> Interrupts:
        self._hook = sys.unraisablehook
        self._before = signal.getsignal(signal.SIGINT)
        self._ours = self._before is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._interrupted)
            sys.unraisablehook = self._dropped
        return self

    def __exit__(self, *_: object) -> None:
        """What is left is to go: an interrupt has nothing more to stop."""
        if self._ours:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            leave()
        self.came = True
        raise KeyboardInterrupt

    def _dropped(self, unraisable: Any) -> None:
        if not (self.came and issubclass(unraisable.exc_type, KeyboardInterrupt)):
            self._hook(unraisable)
            return
        self.came = False
        timer = threading.Timer(_AGAIN, _thread.interrupt_main)
        timer.daemon = True
        timer.start()


def leave() -> None:
    """End the process now, without what Python and its libraries do at their end: they may wait for threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(STATUS)
