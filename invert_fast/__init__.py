"""Hidden states of a language model back into the exact text, with a certificate for every token.

```python
from invert_fast import Inverter

inverter = Inverter.from_pretrained("bundled")
states = inverter.capture(["The mayor opened the bridge on Tuesday."])
print(inverter.invert(states)[0].text)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import exporting

if TYPE_CHECKING:
    from .diagnose.report import Diagnosis
    from .inverter import Inverter
    from .lens.settings import Fit, FitReport
    from .model.reading import Reading
    from .storage.noise import Noise
    from .strategies import Beam, Chain, Continuous, Exhaustive, PerStepProjection, PriorOrder, Speculative
    from .types import Cost, InputError, Mended, Recovery, States, Status

__version__ = "0.1.0"
__all__ = [
    "Beam",
    "Chain",
    "Continuous",
    "Cost",
    "Diagnosis",
    "Exhaustive",
    "Fit",
    "FitReport",
    "InputError",
    "Inverter",
    "Mended",
    "Noise",
    "PerStepProjection",
    "PriorOrder",
    "Reading",
    "Recovery",
    "Speculative",
    "States",
    "Status",
    "__version__",
]
PUBLIC = ("invert_fast", "invert_fast.explain", "invert_fast.extend", "invert_fast.logits", "invert_fast.extract")
"""What is promised (docs/api.md): `__all__` of these modules. All else may change with any release."""

_TYPES = ("Cost", "InputError", "Mended", "Recovery", "States", "Status")
__getattr__ = exporting(
    __name__,
    dict.fromkeys(__all__[:-1], f"{__name__}.strategies")
    | dict.fromkeys(_TYPES, f"{__name__}.types")
    | dict.fromkeys(("Fit", "FitReport"), f"{__name__}.lens.settings")
    | {
        "Noise": f"{__name__}.storage.noise",
        "Diagnosis": f"{__name__}.diagnose.report",
        "Inverter": f"{__name__}.inverter",
        "Reading": f"{__name__}.model.reading",
    },
)
