"""One process at a time: the only writer of a file, or one after the other in the cache folder. A lock is a file that
ends with its holder, however that ends."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..types import InputError
from . import cache
from .json_text import parse

log = logging.getLogger("invert_fast")
_SAID = 2.0  # seconds after which it is said that another process is waited for


@contextmanager
def in_turn(name: str, patience: float, waiting: str = "") -> Iterator[None]:
    """One process at a time for an entry of the cache folder: the others wait for so many seconds, and then go on as if
    there were no lock. So does everybody where nothing is kept or can be locked. Those of other machines wait, too,
    where the folder is on a file system that they share and that can lock. waiting: what is said to who has to."""
    from filelock import FileLock, Timeout

    root, lock = cache.folder(), None
    if root is not None:
        lock = FileLock(root / f"{name}.lock")
        try:
            root.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=min(_SAID, patience))
            except Timeout:
                if waiting:
                    log.info("%s", waiting)
                lock.acquire(timeout=max(0.0, patience - _SAID))
        except (OSError, Timeout, NotImplementedError):  # not every file system can lock
            lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one to write `path` meanwhile. Raises InputError where another process is, and names it, and where
    nothing can be written beside it. On file systems that cannot lock there is no lock, and a warning."""
    from filelock import FileLock, Timeout

    beside = path.with_name(f".{path.name}.lock")
    lock = FileLock(beside, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{path} is being written by {_holder(beside)}, expected to be the only one: wait for it, or give another "
            "--output"
        ) from error
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise InputError(
                f"{path} cannot be written ({getattr(error, 'strerror', error)}), expected a folder that is yours to "
                "write and has room: give another --output, or make room"
            ) from error
        log.warning("%s cannot be locked (%s): see to it that nobody else writes it", path, error)
        yield
        return
    try:
        _say_who(beside)
        yield
    finally:
        with suppress(OSError):  # while it is held: whoever opened it before finds that it is no more
            beside.unlink()
        lock.release()


def _say_who(beside: Path) -> None:
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):
        beside.write_text(json.dumps(about))


def _holder(beside: Path) -> str:
    try:
        about = parse(beside.read_bytes()[:4096])
        return f"process {about['pid']} on {about['host']} (since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
