"""The answer to one request for inversion: its body read, its texts queued, their lines streamed as they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response

from ..storage.recovered import recovery_line
from .bodies import Asked, Texts, texts_in
from .desk import Desk, GoneError, Ticket, read_body
from .jobs import Job
from .problems import MEDIA_TYPE, ProblemError
from .worker import Worker

LINES = "application/x-ndjson"
BODIES = ("application/octet-stream", "application/vnd.safetensors", "application/x-safetensors")
_AT_ONCE = 1 << 18  # bytes of a body that are looked into without a thread of their own
_LAST_WORDS = 5.0  # seconds for the line that says what went wrong


class Answer(Response):
    """An ASGI response that does all of it. The status is known once the first text ends or something goes wrong; what
    goes wrong after that is the last line, in place of the one that says that all is there."""

    def __init__(self, desk: Desk, worker: Worker, asked: Asked):
        super().__init__()
        self.desk, self.worker, self.asked = desk, worker, asked
        self._started = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(GoneError):
            try:
                await self._answer(Headers(scope=scope), receive, send)
            except ProblemError as problem:
                await self._say(problem, send)

    async def _answer(self, headers: Headers, receive: Any, send: Any) -> None:
        start = time.perf_counter()
        if not self.worker.ready.is_set():
            raise not_ready()
        _check_kind(headers)
        with self.desk.admitted() as ticket:
            texts = await self._texts(headers, receive, ticket)
            job = Job(texts)
            watch = asyncio.create_task(_watch(receive, job))
            if texts.rows:
                self.worker.waiting.put(job)
            try:
                async with asyncio.timeout(self.desk.limits.timeout):
                    await self._stream(job, send, start)
            except TimeoutError:
                raise ProblemError(
                    "timeout",
                    f"the texts were not all found in {self.desk.limits.timeout:g} s, expected them in that time: send "
                    "fewer at once, or see with `invert-fast diagnose` whether they are of this model",
                ) from None
            finally:
                job.cancelled = True
                watch.cancel()

    async def _texts(self, headers: Headers, receive: Any, ticket: Ticket) -> Texts:
        body = await read_body(receive, headers.get("content-length"), ticket)
        arguments = body, self.worker.inverter, self.asked, self.desk.limits.texts
        return texts_in(*arguments) if len(body) < _AT_ONCE else await run_in_threadpool(texts_in, *arguments)

    async def _stream(self, job: Job, send: Any, start: float) -> None:
        left, tokens, certified, forward = len(job.texts.rows), job.texts.tokens, 0, 0
        while True:
            lines = []
            while left and (not lines or not job.events.empty()):  # what is there goes together
                event = await job.events.get()
                if event is None:
                    raise GoneError
                if isinstance(event, ProblemError):
                    raise event
                number, recovery = event
                lines.append(recovery_line(number, recovery, job.texts.names[number]))
                left, certified = left - 1, certified + recovery.certified
                forward += recovery.cost.forward_tokens
            if not left:
                seconds = round(time.perf_counter() - start, 6)
                count = len(job.texts.rows)
                last = {"done": True, "texts": count, "tokens": tokens, "certified": certified}
                lines.append(json.dumps({**last, "forward_tokens": forward, "seconds": seconds}))
            await self._send("\n".join([*lines, ""]).encode(), not left, send)
            if not left:
                return

    async def _send(self, chunk: bytes, whole: bool, send: Any) -> None:
        if not self._started:
            self._started = True
            length = [(b"content-length", str(len(chunk)).encode())] if whole else []
            headers = [(b"content-type", LINES.encode()), (b"cache-control", b"no-store"), *length]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": chunk, "more_body": not whole})

    async def _say(self, problem: ProblemError, send: Any) -> None:
        if self._started:
            line = json.dumps({"error": problem.members()}, ensure_ascii=False) + "\n"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._send(line.encode(), True, send)
            return
        await say(problem, send)


async def say(problem: ProblemError, send: Any) -> None:
    """A problem as the whole answer."""
    body = problem.body()
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def not_ready() -> ProblemError:
    return ProblemError(
        "not-ready",
        "the server still prepares its model, expected it to be ready: ask again when /readyz says so",
        Retry_After="5",
    )


def _check_kind(headers: Headers) -> None:
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in BODIES:
        raise ProblemError(
            "wrong-media-type",
            f"the body is {given[:80] or 'of no type'}, expected safetensors as {BODIES[0]} (or {BODIES[1]}): send "
            "what safetensors.torch.save returns",
        )
    if (coding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise ProblemError(
            "wrong-media-type",
            f"the body is encoded as {coding[:40]}, expected it plain: leave that out",
        )


async def _watch(receive: Any, job: Job) -> None:
    """A client that goes away frees its work."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancelled = True
    job.events.put_nowait(None)
