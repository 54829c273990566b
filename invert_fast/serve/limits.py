"""What a server bears: sizes, numbers and times, each with its default."""

from __future__ import annotations

from dataclasses import dataclass

from ..types import InputError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """body: bytes of one request; held: bytes of all bodies that are held at once (a body counts from its first byte
    until its last text is answered); texts: of one request; requests: admitted at once, whether their body is still
    arriving, they wait, or they are worked on; tokens: in the lanes at once; upload: seconds that a body may take to
    arrive; timeout: seconds from there to the last text; grace: seconds that what runs may still take once the server
    is told to stop.
    """

    body: int = 64 * MIB
    held: int = 256 * MIB
    texts: int = 1024
    requests: int = 128
    tokens: int = 4096
    upload: float = 60.0
    timeout: float = 600.0
    grace: float = 30.0

    def __post_init__(self):
        if self.held < self.body:
            raise InputError(
                f"all bodies together may have {self.held:,} bytes, one alone {self.body:,}, expected as many or more "
                "for all: raise --max-bodies, or lower --max-body"
            )
