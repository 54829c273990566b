"""Who is let in: how many requests at once, how many bytes of bodies, and none once the server is to stop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from .limits import MIB, Limits
from .problems import ProblemError

_LONGEST_RETRY = 60
_SMOOTH = 0.1  # weight of the latest request in the mean duration


class GoneError(Exception):
    """The client went away."""


class Ticket:
    """The place of one request, and the bytes that are held for it."""

    def __init__(self, desk: Desk):
        self.desk, self.bytes, self.given_up = desk, 0, False
        self.task = asyncio.current_task()

    def hold(self, count: int) -> None:
        """Room for so many more bytes; ProblemError where there is none."""
        if self.desk.held + count > self.desk.limits.held:
            raise self.desk.full(
                f"bodies of {self.desk.held / MIB:.0f} MiB are being worked on, expected "
                f"{self.desk.limits.held / MIB:.1f} MiB or less with this one"
            )
        self.bytes += count
        self.desk.held += count


class Desk:
    """Used by the event loop alone. held: bytes of bodies at present; stopping: nobody is let in any more."""

    def __init__(self, limits: Limits):
        self.limits, self.held, self.stopping = limits, 0, False
        self._tickets: set[Ticket] = set()
        self._left = asyncio.Event()
        self._mean = 1.0  # seconds that a request takes

    @contextmanager
    def admitted(self) -> Iterator[Ticket]:
        """A place for as long as the request takes; ProblemError where there is none."""
        if self.stopping:
            raise _stopping("the server is about to stop")
        if self.requests >= self.limits.requests:
            raise self.full(f"{self.requests} requests are here already, as many as are taken at once")
        ticket, start = Ticket(self), time.perf_counter()
        self._tickets.add(ticket)
        try:
            yield ticket
        except asyncio.CancelledError:
            if not ticket.given_up or ticket.task is None:
                raise
            ticket.task.uncancel()
            raise _stopping("the server stops before this request was done") from None
        finally:
            self._tickets.discard(ticket)
            self.held -= ticket.bytes
            self._mean += _SMOOTH * (time.perf_counter() - start - self._mean)
            self._left.set()

    @property
    def requests(self) -> int:
        """How many are here."""
        return len(self._tickets)

    def give_up(self) -> None:
        """End every request that is here; each is told so."""
        for ticket in self._tickets:
            if ticket.task is not None:
                ticket.given_up = True
                ticket.task.cancel()

    def full(self, got: str) -> ProblemError:
        seconds = min(_LONGEST_RETRY, max(1, math.ceil(self._mean)))
        return ProblemError(
            "queue-full", f"{got}: send it again after {seconds} s", Retry_After=str(seconds), Connection="close"
        )

    async def drained(self, seconds: float) -> bool:
        """Until nobody is here; False when somebody still is after that time."""
        try:
            async with asyncio.timeout(seconds):
                while self.requests:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            return False
        return True


def _stopping(got: str) -> ProblemError:
    return ProblemError(
        "stopping",
        f"{got}, expected one that takes requests: send it to another server, or again in a while",
        Retry_After=str(_LONGEST_RETRY),
        Connection="close",
    )


async def read_body(receive: Any, length: str | None, ticket: Ticket) -> bytes:
    """The body of a request, bounded while it arrives: what it says of its own length is only believed where it is too
    much. Raises ProblemError for one that is too large or too slow, GoneError where the client left."""
    limits = ticket.desk.limits
    if length is not None and length.isdecimal() and int(length[:20]) > limits.body:
        raise _too_large(int(length[:20]), limits.body)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.upload):
            async for part in _parts(receive):
                size += len(part)
                if size > limits.body:
                    raise _too_large(size, limits.body)
                ticket.hold(len(part))
                parts.append(part)
    except TimeoutError:
        raise ProblemError(
            "upload-timeout",
            f"{size:,} bytes of the body came in {limits.upload:g} s, expected all of it: send less at once",
            Connection="close",
        ) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _parts(receive: Any) -> AsyncIterator[bytes]:
    more = True
    while more:
        message: MutableMapping[str, Any] = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        if message.get("body"):
            yield message["body"]
        more = message.get("more_body", False)


def _too_large(got: int, most: int) -> ProblemError:
    return ProblemError(
        "too-large",
        f"the body has {got:,} bytes or more, expected {most:,} or fewer: send its texts in several requests, or store "
        "them in bfloat16",
        Connection="close",
    )
