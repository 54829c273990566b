"""Why a text comes back from its states, or does not: token by token, against what is known of it.

```python
from invert_fast import Inverter
from invert_fast.explain import explain

for one in explain(Inverter.from_pretrained("bundled"), "The password is hunter2."):
    print(one.token, one.lens_rank, one.residual, one.status.label, one.why)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from .explaining import explain
    from .explanation import Explanation, Position, Rival

__all__ = ["Explanation", "Position", "Rival", "explain"]

__getattr__ = exporting(
    __name__,
    {"explain": f"{__name__}.explaining"}
    | dict.fromkeys(("Explanation", "Position", "Rival"), f"{__name__}.explanation"),
)
