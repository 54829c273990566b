"""One writer a file: a lock beside it that says who holds it, and that ends with its holder, however that ends."""

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
from .json_text import parse

log = logging.getLogger("invert_fast")


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
