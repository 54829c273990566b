"""Hidden states of a language model back into the exact text, with a certificate for every token.

from invert_fast import Inverter
inverter = Inverter.from_pretrained("bundled")
states = inverter.capture(["The mayor opened the bridge on Tuesday."])
print(inverter.invert(states)[0].text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inverter import Inverter
    from .strategies import Chain, Continuous, Exhaustive, PerStepProjection, PriorOrder, Speculative
    from .types import Cost, InputError, Recovery, States, Status

__version__ = "0.1.0"
__all__ = [
    "Chain",
    "Continuous",
    "Cost",
    "Exhaustive",
    "InputError",
    "Inverter",
    "PerStepProjection",
    "PriorOrder",
    "Recovery",
    "Speculative",
    "States",
    "Status",
    "__version__",
]

_HOMES = {"Inverter": "inverter"} | dict.fromkeys(("Cost", "InputError", "Recovery", "States", "Status"), "types")


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: `invert-fast --help` needs no PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'strategies')}", __name__), name)
