"""Who may ask: bearer tokens, compared in constant time; and on loopback without one, only who means this machine."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

from ..types import InputError
from .problems import ProblemError

VARIABLE = "INVERT_FAST_TOKEN"
_SHORTEST = 16  # characters
_LARGEST_FILE = 1 << 16
_MAKE = "python -c 'import secrets; print(secrets.token_urlsafe())'"


def is_loopback(host: str) -> bool:
    """Whether an address to bind to is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_tokens(path: Path | None) -> tuple[bytes, ...]:
    """The tokens of a file, one a line (several, so that one can replace another while both are in use), or else that
    of the environment variable INVERT_FAST_TOKEN; none where there is neither. InputError for what nobody should use.
    """
    if path is None:
        where, text = VARIABLE, os.environ.get(VARIABLE, "")
    else:
        where = str(path)
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE).decode("utf-8", "replace")
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if path is not None and not found:
        raise InputError(f"{where} is empty, expected a token a line: {_MAKE}")
    for token in found:
        if len(token) < _SHORTEST or not token.isascii() or any(c.isspace() for c in token):
            raise InputError(
                f"{where} has a token of {len(token)} characters, expected {_SHORTEST} or more in ASCII, no spaces: "
                f"{_MAKE} makes one"
            )
    return tuple(token.encode() for token in found)


def check_bind(host: str, tokens: tuple[bytes, ...]) -> None:
    """InputError for an address that others reach, without a token."""
    if not is_loopback(host) and not tokens:
        raise InputError(
            f"{host} can be reached from other machines, expected a token for that: set {VARIABLE} or give "
            "--token-file, or leave --host at 127.0.0.1"
        )


def check_token(headers: Mapping[str, str], tokens: tuple[bytes, ...]) -> None:
    """ProblemError unless the request brings one of the tokens; nothing is asked for where there are none."""
    if not tokens:
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    brought = given.strip().encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(brought, token) for token in tokens]  # all of them, whichever fits
    if scheme.lower() != "bearer" or not any(matches):
        got = "no Authorization header" if "authorization" not in headers else "a token that is not valid here"
        raise ProblemError(
            "unauthorized",
            f"the request has {got}, expected `Authorization: Bearer TOKEN`: ask who runs this server for the token",
            WWW_Authenticate="Bearer",
        )


def check_host(headers: Mapping[str, str]) -> None:
    """ProblemError for a request that was addressed to another name than this machine's own: a web page could have one
    of its names point here, and ask in the name of who visits it."""
    host = headers.get("host", "")
    name = host[: host.rfind("]") + 1].strip("[]") if host.startswith("[") else host.partition(":")[0]
    if not is_loopback(name):
        raise ProblemError(
            "wrong-host",
            f"the request is addressed to {host[:80]!r}, expected 127.0.0.1 or localhost: a server without a token "
            "answers to these alone",
        )
