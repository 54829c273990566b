"""The texts that wait, request by request in turn, so that a request of a thousand does not hold up one of one."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace

from torch import Tensor

from ..storage.noise import Noise
from .jobs import Job


@dataclass(frozen=True)
class Kind:
    """What texts in the same lanes have in common: their precision, stored and computed, lanes that are long enough,
    and the noise that was added to them."""

    stored: str
    computed: str
    longest: int
    noise: Noise | None = None

    def holds(self, other: Kind) -> bool:
        return replace(other, longest=self.longest) == self and self.longest >= other.longest


@dataclass(frozen=True)
class Taken:
    """A text that leaves the queue: its request, its number in it, its rows."""

    job: Job
    number: int
    rows: Tensor


class Waiting:
    """Requests with texts that wait. shortest: tokens that lanes have at least; longest: that the model has."""

    def __init__(self, shortest: int, longest: int):
        self.shortest, self.longest = min(shortest, longest), longest
        self.closed = False
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()

    def kind(self, job: Job) -> Kind:
        return Kind(job.texts.stored, job.texts.computed, self.lanes(job.longest), job.texts.noise)

    def lanes(self, tokens: int) -> int:
        """How long lanes for so many tokens are: a power of two, so that few kinds meet."""
        return min(self.longest, max(self.shortest, 1 << max(0, tokens - 1).bit_length()))

    def put(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Nothing is taken any more."""
        with self._changed:
            self.closed = True
            self._changed.notify()

    def texts(self) -> int:
        """How many texts wait."""
        with self._changed:
            return sum(len(job.waiting) for job in self._jobs if not job.cancelled)

    def first(self) -> Kind | None:
        """The kind of the request that is next, waited for; None once closed."""
        with self._changed:
            while not self.closed:
                self._leave_out_cancelled()
                if self._jobs:
                    return self.kind(self._jobs[0])
                self._changed.wait()
            return None

    def take(self, kind: Kind, room: int, beside: int = 0) -> tuple[Taken | None, bool]:
        """The next text of this kind of at most `room` tokens, and whether a request of another kind waits. A shorter
        kind may join lanes that are needed for a text of `beside` tokens."""
        with self._changed:
            self._leave_out_cancelled()
            others, needed = False, self.lanes(beside) == kind.longest
            for place, job in enumerate(self._jobs):
                own = self.kind(job)
                if not kind.holds(own) or not (needed or own == kind):
                    others = True
                elif len(rows := job.next_rows()) <= room:
                    del self._jobs[place]
                    number = job.waiting.popleft()
                    if job.waiting:
                        self._jobs.append(job)
                    return Taken(job, number, rows), others
            return None, others

    def wait(self, seconds: float) -> bool:
        """Until something waits, or is closed; False where nothing came in that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.closed or bool(self._jobs), seconds)

    def _leave_out_cancelled(self) -> None:
        if any(job.cancelled for job in self._jobs):
            self._jobs = deque(job for job in self._jobs if not job.cancelled)
