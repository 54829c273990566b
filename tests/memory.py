"""Limits on the memory of this very process, for tests of what happens at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_TOLD = Path("/proc/self/statm")
needs_limits = pytest.mark.skipif(not _TOLD.exists(), reason="there is no /proc here to tell how much memory we have")


@contextmanager
def memory_limit(size: int = 1 << 30) -> Iterator[None]:
    """What the process has of addresses by now, and so many bytes more."""
    import resource

    pages = int(_TOLD.read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
