"""What every request passes: who may ask, a number for it, a line in the log, a count, and no traceback."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from starlette.datastructures import Headers

from .answer import say
from .metrics import Metrics
from .problems import ProblemError
from .security import check_host, check_token

log = logging.getLogger("invert_fast")
OPEN = ("/healthz", "/readyz")  # nobody need say who asks
INVERT = "/v1/invert"
KNOWN = (*OPEN, INVERT, "/v1/model", "/metrics", "/openapi.json")


class Gate:
    """ASGI middleware around everything else. tokens: one of which requests have to bring, if there are any."""

    def __init__(self, app: Any, tokens: tuple[bytes, ...], metrics: Metrics):
        self.app, self.tokens, self.metrics = app, tokens, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, number, status = time.perf_counter(), secrets.token_hex(8), 0
        path = scope["path"] if scope["path"] in KNOWN else "other"

        async def numbered(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            await send(message)

        try:
            if path not in OPEN:
                headers = Headers(scope=scope)
                if not self.tokens:
                    check_host(headers)
                check_token(headers, self.tokens)
            await self.app(scope, receive, numbered)
        except ProblemError as problem:
            await say(problem, numbered)
        except Exception:
            log.exception("request %s failed", number)
            if not status:
                await say(
                    ProblemError(
                        "internal",
                        f"the request failed, expected it not to: tell who runs this server its number, {number}",
                    ),
                    numbered,
                )
        finally:
            seconds = time.perf_counter() - start
            self.metrics.requests.labels(path, str(status or "gone")).inc()
            if path == INVERT:
                self.metrics.seconds.observe(seconds)
                log.info("%s %s %s %s, %.3f s", number, scope["method"], path, status or "gone", seconds)
