"""The packages of the extra `serve`, named with what installs them where they are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..types import InputError


@contextmanager
def needed(package: str) -> Iterator[None]:
    """Around an import: InputError with the command that installs the package."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise InputError(f"serving over HTTP needs {package}: pip install 'invert_fast[serve]'") from error
