"""Files that appear under their name only when they are complete: a kill leaves the old one, or none, never a half.

What a kill does leave is a file beside it that ends in `.partial`: `sweep` removes those.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_ENDING = ".partial"
_OURS = re.compile(r"\.(.+)\.[0-9a-f]{12}\.partial")


def partial_name(path: Path) -> Path:
    """A name beside `path` for what is not complete yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{_ENDING}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` to write to; when the block ends without error it is put on disk and takes that name. It is
    for whom the file that it replaces was for, a new one for whom the process's umask says. Links are followed."""
    path = Path(os.path.realpath(path))
    beside = partial_name(path)
    descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "w+b") as file:
            with suppress(OSError):
                os.chmod(beside, stat.S_IMODE(os.stat(path).st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """The whole of a file that fits in memory."""
    with replacing(path) as file:
        file.write(data)


def sweep(folder: Path, name: str | None = None, older: float = 0.0) -> int:
    """Remove what kills left beside the file `name` (None: any of the folder), of `older` seconds at least; returns how
    many that were. Only where no other process can be writing them."""
    count = 0
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = _OURS.fullmatch(entry.name)
            if found is None or name not in (None, found[1]):
                continue
            with suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime < older:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
                count += 1
    return count
