"""How much a model's states leak: inverted at every layer, in every precision, under every defence, and told on a page.

from invert_fast.audit import Settings, audit
audit(Inverter.from_pretrained("bundled"), texts, "report/", Settings(defences=("gaussian:0.05",)))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from .joining import join
    from .run import audit
    from .settings import Cell, Settings

_PLACES = {"joining": ("join",), "run": ("audit",), "settings": ("Cell", "Settings")}
__all__ = ["Cell", "Settings", "audit", "join"]

__getattr__ = exporting(__name__, {name: f"{__name__}.{file}" for file, names in _PLACES.items() for name in names})
