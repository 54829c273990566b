"""Several processes and several devices: shares of one run, and how they are put together.

`invert_file` runs a process a device on this machine, as `invert-fast invert --devices … --workers n` does; on Ray
`BatchInverter` is what the actors of a data set's map are. docs/scale.md has both, and what large runs cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from .batches import BatchInverter
    from .files import invert_file
    from .on_ray import local_ray, read_states

__all__ = ["BatchInverter", "invert_file", "local_ray", "read_states"]

__getattr__ = exporting(
    __name__,
    {
        "BatchInverter": f"{__name__}.batches",
        "invert_file": f"{__name__}.files",
        "local_ray": f"{__name__}.on_ray",
        "read_states": f"{__name__}.on_ray",
    },
)
