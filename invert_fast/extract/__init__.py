"""Full next-token log-probs through APIs that do not want to give them.

```python
from invert_fast import Inverter
from invert_fast.extract import Client, LocalApi, Restrictions, extract

api = LocalApi(Inverter.from_pretrained("bundled"), Restrictions(top=5))
print(extract(Client(api), "The river was").log_probs)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from .capabilities import Capabilities, probe
    from .client import Client, Patience
    from .extraction import Extraction, extract
    from .http import HttpApi
    from .interface import (
        Answer,
        Api,
        ApiError,
        BudgetSpentError,
        MalformedError,
        Query,
        RateLimitedError,
        RefusedError,
        UnauthorisedError,
        UnavailableError,
    )
    from .local import LocalApi
    from .names import TokenNames
    from .progress import Progress
    from .settings import Endpoint, Restrictions, Settings
    from .subspace import Image, image_of

__all__ = [
    "Answer",
    "Api",
    "ApiError",
    "BudgetSpentError",
    "Capabilities",
    "Client",
    "Endpoint",
    "Extraction",
    "HttpApi",
    "Image",
    "LocalApi",
    "MalformedError",
    "Patience",
    "Progress",
    "Query",
    "RateLimitedError",
    "RefusedError",
    "Restrictions",
    "Settings",
    "TokenNames",
    "UnauthorisedError",
    "UnavailableError",
    "extract",
    "image_of",
    "probe",
]

_HOMES = {
    "capabilities": ("Capabilities", "probe"),
    "client": ("Client", "Patience"),
    "extraction": ("Extraction", "extract"),
    "http": ("HttpApi",),
    "local": ("LocalApi",),
    "names": ("TokenNames",),
    "progress": ("Progress",),
    "settings": ("Endpoint", "Restrictions", "Settings"),
    "subspace": ("Image", "image_of"),
}
__getattr__ = exporting(
    __name__,
    dict.fromkeys(__all__, f"{__name__}.interface")
    | {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names},
)
