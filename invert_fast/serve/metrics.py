"""What Prometheus is told: counts and times, nothing of any text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from .. import __version__
from ..types import Recovery, Status
from .packages import needed

with needed("prometheus_client"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """One registry a server, so that several in a process do not meet. All calls may come from any thread."""

    def __init__(self):
        self.registry = CollectorRegistry()
        name, to = "invert_fast_{}".format, cast(dict[str, Any], {"registry": self.registry})
        self.requests = Counter(name("requests"), "Requests answered, by path and status.", ["path", "status"], **to)
        self.texts = Counter(
            name("texts"), "Texts finished, by whether all of their tokens are certified.", ["certified"], **to
        )
        self.tokens = Counter(name("tokens"), "Tokens of finished texts.", **to)
        self.certified = Counter(name("certified_tokens"), "Tokens of finished texts that are certified.", **to)
        self.forward = Counter(name("forward_tokens"), "Tokens that went through the model for finished texts.", **to)
        self.in_progress = Gauge(name("requests_in_progress"), "Requests being read, waiting or worked on.", **to)
        self.held = Gauge(name("held_bytes"), "Bytes of the bodies of these requests.", **to)
        self.running = Gauge(name("running_texts"), "Texts that are worked on.", **to)
        self.depth = Gauge(name("queue_texts"), "Texts that wait for a lane.", **to)
        self.seconds = Histogram(
            name("request_seconds"),
            "From the first byte of a request for inversion to its last.",
            buckets=_SECONDS,
            **to,
        )
        self.queued = Histogram(name("queue_seconds"), "From a text's arrival to its lane.", buckets=_SECONDS, **to)
        Info(name("build"), "The version that runs.", **to).info({"version": __version__})

    def watch(self, depth: Callable[[], int], in_progress: Callable[[], int], held: Callable[[], int]) -> None:
        """Where to look when these are asked for."""
        self.depth.set_function(depth)
        self.in_progress.set_function(in_progress)
        self.held.set_function(held)

    def began(self, seconds: float) -> None:
        """A text went into a lane after so many seconds of waiting."""
        self.queued.observe(seconds)
        self.running.inc()

    def left(self) -> None:
        """A text left its lane, found or not."""
        self.running.dec()

    def found(self, tokens: int, recovery: Recovery) -> None:
        self.texts.labels(str(recovery.certified).lower()).inc()
        self.tokens.inc(tokens)
        self.certified.inc(int((recovery.status == Status.CERTIFIED).sum()))
        self.forward.inc(recovery.cost.forward_tokens)

    def page(self) -> bytes:
        """All of it, in the format that Prometheus reads."""
        return generate_latest(self.registry)
