"""What the processes of one machine share: its threads, a cache folder, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..storage import cache


def cuda_devices() -> list[str]:
    """All that there are."""
    import torch

    return [f"cuda:{k}" for k in range(torch.cuda.device_count())]


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(workers: int) -> list[int]:
    """The threads of this process (OMP_NUM_THREADS, else its cores) shared out, at least one each."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    total = int(given) if given.isdecimal() and int(given) else cores()
    return [max(1, total // workers + (k < total % workers)) for k in range(workers)]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A process that starts meanwhile never hears of Ctrl-C; this one does when the block ends."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def common_cache() -> Iterator[Path]:
    """The cache folder, where one process measures and fits for all. Where nothing can be kept it is a folder for this
    run alone, with links to what there is."""
    chosen = cache.folder()
    if chosen is not None and _writable(chosen):
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="invert_fast-") as folder:
        if chosen is not None and chosen.is_dir():
            for entry in chosen.iterdir():
                (Path(folder) / entry.name).symlink_to(entry.resolve())
        yield Path(folder)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
