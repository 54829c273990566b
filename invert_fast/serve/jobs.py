"""A request between the two worlds: the event loop that answers it, and the thread that works on its texts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque

from torch import Tensor

from ..types import Recovery
from .bodies import Texts
from .problems import ProblemError

Event = tuple[int, Recovery] | ProblemError | None


class Job:
    """One request.

    events: what comes of it, `(number of the text, recovery)` in the order they are finished, or a ProblemError, after
    which nothing comes; None when the client went away. cancelled: nobody waits for it any more; the worker looks at it
    between rounds.
    """

    def __init__(self, texts: Texts):
        self.texts, self.cancelled, self.began = texts, False, time.perf_counter()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        order = sorted(range(len(texts.rows)), key=lambda number: -len(texts.rows[number]))  # like lengths share a pass
        self.waiting = deque(order)

    @property
    def longest(self) -> int:
        return max(map(len, self.texts.rows), default=0)

    def next_rows(self) -> Tensor:
        """Of the text that is next."""
        return self.texts.rows[self.waiting[0]]

    def tell(self, event: Event) -> None:
        """From the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def fail(self, problem: ProblemError) -> None:
        """From the worker's thread: nothing more comes."""
        self.cancelled = True
        self.waiting.clear()
        self.tell(problem)
