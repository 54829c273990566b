"""One HTTP request, bounded in time and size whatever the server does: it may trickle, never end, or send a bomb."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from ..storage.json_text import parse
from ..types import InputError
from .interface import ApiError, MalformedError, UnavailableError

_LEAST, _A_ENTRY, _MOST = 1 << 20, 1 << 10, 1 << 29  # bytes of an answer: of none, for a log-prob of it, of any
_GRACE = 1.0  # seconds more than an answer may take
_ABANDONED = 16  # requests that never ended, after which nothing more is asked


@dataclass(frozen=True)
class Reply:
    """What came back, whole."""

    status: int
    reason: str
    headers: Any
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")


class Transport:
    """An HTTP client. seconds: that an answer may take in all, from the first byte sent to the last received."""

    def __init__(self, url: str, headers: dict[str, str], seconds: float):
        try:
            import httpx
        except ImportError as error:
            raise InputError("asking an API needs httpx: pip install 'invert_fast[logits]'") from error
        if not 0 < seconds < float("inf"):
            raise InputError(f"an answer may take {seconds:g} s, expected more than 0 and an end: give --timeout")
        self.url, self._httpx, self._seconds, self._abandoned = url, httpx, seconds, 0
        headers = headers | {"Accept-Encoding": "identity"}  # what unpacks may unpack to anything
        self._http = httpx.Client(
            base_url=url.rstrip("/") + "/", headers=headers, timeout=seconds, follow_redirects=False
        )

    def close(self) -> None:
        self._http.close()

    def send(self, method: str, path: str, body: dict[str, Any] | None, entries: int = 0) -> Reply:
        """One request; entries: log-probs that were asked for. Raises UnavailableError for what may pass, and an
        ApiError for an answer beyond all measure."""
        if self._abandoned >= _ABANDONED:
            raise ApiError(f"{self.url} did not end {self._abandoned} of its answers: nothing more is asked of it")
        done, found = threading.Event(), []

        def exchange() -> None:
            try:
                found.append(self._exchange(method, path, body, min(_MOST, _LEAST + _A_ENTRY * entries)))
            except BaseException as error:
                found.append(error)
            done.set()

        # A timeout of a socket begins anew with every byte: only somebody who stands beside it sees the whole.
        threading.Thread(target=exchange, daemon=True, name="invert_fast request").start()
        if not done.wait(self._seconds + _GRACE):
            self._abandoned += 1
            raise self._late()
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None, most: int) -> Reply:
        httpx, end = self._httpx, time.monotonic() + self._seconds
        try:
            with self._http.stream(method, path, json=body) as reply:
                coding = reply.headers.get("Content-Encoding", "identity")
                if coding.lower() != "identity":
                    raise MalformedError(
                        f"{self.url}: the answer is packed ({coding}), expected it plain, as asked for"
                    )
                parts, size = [], 0
                for part in reply.iter_raw():
                    size += len(part)
                    if size > most:
                        raise MalformedError(
                            f"{self.url}: the answer has more than {most:,} bytes, expected at most that many for what "
                            "was asked: is this an API?"
                        )
                    if time.monotonic() > end:
                        raise self._late()
                    parts.append(part)
                return Reply(reply.status_code, reply.reason_phrase, reply.headers, b"".join(parts))
        except httpx.TimeoutException as error:
            raise self._late() from error
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise UnavailableError(f"{self.url}: connection lost ({error!r})") from error

    def _late(self) -> UnavailableError:
        return UnavailableError(f"{self.url} did not answer within {self._seconds:g} s")


def json_object(url: str, content: bytes) -> dict[str, Any]:
    """The JSON object of an answer. Numbers may be no finite ones: whoever reads them looks."""
    try:
        answer = parse(content, finite=False)
    except ValueError as error:
        raise UnavailableError(f"{url}: the answer is cut short or no JSON ({len(content)} bytes, {error})") from error
    if not isinstance(answer, dict):
        raise MalformedError(f"{url}: the answer is a JSON {type(answer).__name__}, expected an object")
    return answer
