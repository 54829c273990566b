"""What goes wrong, as it is answered: `application/problem+json` (RFC 9457), one table of kinds.

The detail is one line: what was got, what was wanted, the next step. It names neither paths nor code of this machine.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus

from ..types import InputError

MEDIA_TYPE = "application/problem+json"
URN = "urn:invert-fast:"

KINDS = {
    "not-tensors": 400,
    "unauthorized": 401,
    "not-found": 404,
    "method-not-allowed": 405,
    "upload-timeout": 408,
    "too-large": 413,
    "wrong-media-type": 415,
    "wrong-host": 421,
    "wrong-parameter": 422,
    "wrong-states": 422,
    "queue-full": 429,
    "internal": 500,
    "not-ready": 503,
    "stopping": 503,
    "timeout": 504,
}
_LONGEST = 600
# what the library says to its callers and users of the command line, as it is said to those who send requests
_SAID = (
    ("name the tensor of the states (--tensor)", "name the tensor of the states (?tensor=)"),
    ("name it with --tensor", "name it with ?tensor="),
    ("make it with layer=", "ask a server that was started with --layer "),
    ("make the inverter with layer=", "ask a server that was started with --layer "),
    ("give them to invert_logits (`invert-fast logits invert`)", "recover them with `invert-fast logits invert`"),
)


class ProblemError(Exception):
    """A request that is answered with a problem. kind: of `KINDS`; headers: that the answer has."""

    def __init__(self, kind: str, detail: str, **headers: str):
        super().__init__(detail)
        self.kind, self.status = kind, KINDS[kind]
        self.detail = detail if len(detail) <= _LONGEST else detail[: _LONGEST - 1] + "…"
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def members(self) -> dict[str, str | int]:
        title = HTTPStatus(self.status).phrase
        return {"type": URN + self.kind, "title": title, "status": self.status, "detail": self.detail}

    def body(self) -> bytes:
        return json.dumps(self.members(), ensure_ascii=False).encode("utf-8", "replace")


def of_input(error: InputError, kind: str = "wrong-states") -> ProblemError:
    """What the library refuses, in the words of this service."""
    text = str(error)
    for theirs, ours in _SAID:
        text = text.replace(theirs, ours)
    return ProblemError(kind, re.sub(r"[\x00-\x1f\x7f]", " ", text))
