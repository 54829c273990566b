"""Files that appear under their name only when they are complete: a kill leaves the old one, or none, never a half."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_MODE = 0o644  # a temporary file is for its owner alone


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` to write to; when the block ends without error it is put on disk and takes that name."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, _MODE)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def write_whole(path: Path, data: bytes) -> None:
    """The whole of a file that fits in memory."""
    with replacing(path) as file:
        file.write(data)
