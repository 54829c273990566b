"""Inversion as a service over HTTP: `invert-fast serve`, and its client (docs/serve.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from .client import Client, Found, ServeError
    from .limits import Limits
    from .server import Server

__all__ = ["Client", "Found", "Limits", "ServeError", "Server"]

__getattr__ = exporting(
    __name__,
    dict.fromkeys(("Client", "Found", "ServeError"), f"{__name__}.client")
    | {"Limits": f"{__name__}.limits", "Server": f"{__name__}.server"},
)
