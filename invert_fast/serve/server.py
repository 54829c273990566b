"""The process: a socket, uvicorn, the worker, and an end that lets what runs come to its own."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType
from typing import Any

from ..inverter import Inverter
from .desk import Desk
from .limits import Limits
from .metrics import Metrics
from .packages import needed
from .security import check_bind
from .worker import Worker

with needed("uvicorn"):
    import uvicorn

from .app import create_app

log = logging.getLogger("invert_fast")
_LAST = 5.0  # seconds for the worker's present round, and for what was answered to be on its way


class Server(uvicorn.Server):
    """Serves one inverter on one address until a signal, or `stop` from any thread.

    host, port: where to listen (0: a free port); url: what came of them; tokens: one of which requests have to bring,
    needed for addresses that other machines reach; limits: what is borne; options: of `Worker`. `run()` blocks, and
    gives True where it ended well. Raises InputError for an open address without a token, OSError where it cannot
    listen.
    """

    def __init__(
        self,
        inverter: Inverter,
        host: str = "127.0.0.1",
        port: int = 8017,
        *,
        tokens: tuple[bytes, ...] = (),
        limits: Limits | None = None,
        **options: Any,
    ):
        check_bind(host, tokens)
        limits = limits or Limits()
        self.metrics = Metrics()
        self.worker = Worker(inverter, self.metrics, tokens=limits.tokens, **options)
        self.desk = Desk(limits)
        self.metrics.watch(self.worker.waiting.texts, lambda: self.desk.requests, lambda: self.desk.held)
        self.socket = _bound(host, port)
        host, port = self.socket.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.app = create_app(self.worker, self.desk, self.metrics, tokens)
        self._ending: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                self.app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=int(_LAST),
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> bool:
        """Serve until told to stop. True unless the worker died."""
        super().run(sockets or [self.socket])
        self.worker.stop(_LAST)
        return self.worker.error is None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("listening on %s, and ready when %s/readyz says so", self.url, self.url)
        self.worker.start()

    async def on_tick(self, counter: int) -> bool:
        if self.desk.stopping and self._ending is None:
            self._ending = asyncio.create_task(self._drain())
        return await super().on_tick(counter) or self.worker.ended.is_set()

    def stop(self) -> None:
        """Take no more requests, let what runs finish within the grace, then end. From any thread."""
        self.desk.stopping = True  # and `on_tick` sees to the rest

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal stops with grace, a second at once."""
        if self.desk.stopping:
            self.worker.waiting.close()
            self.should_exit = self.force_exit = True
        self.stop()

    async def _drain(self) -> None:
        seconds = self.desk.limits.grace
        if self.desk.requests:
            log.info("stopping: %d requests have %g s to finish", self.desk.requests, seconds)
        if not await self.desk.drained(seconds):
            log.warning("stopping: %d requests are given up after %g s", self.desk.requests, seconds)
            self.desk.give_up()
            await self.desk.drained(_LAST)
        self.should_exit = True


def _bound(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that an address in use is found before a model is prepared."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # said, or asyncio leaves Nagle's delay on
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        error.filename = f"{host}:{port}"
        raise
    return made
