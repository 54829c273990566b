"""Several processes and several devices: shares of one run, and how they are put together.

`invert_file` runs a process a device on this machine, as `invert-fast invert --devices … --workers n` does.
docs/scale.md says what there is for several machines, and what large runs cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from .files import invert_file

__all__ = ["invert_file"]

__getattr__ = exporting(__name__, {"invert_file": f"{__name__}.files"})
