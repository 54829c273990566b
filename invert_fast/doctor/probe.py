"""What only a process that imports everything can tell: a process of its own, since a broken library may end it.

`python -m invert_fast.doctor.probe` prints a JSON line when it begins a part and one with what it found. Whoever reads
them sees how far it got.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

MARK = "invert_fast.doctor "  # before every line of ours: libraries print what they like
IMPORTED = ("numpy", "torch", "safetensors", "tokenizers", "transformers", "triton")


def importing(name: str) -> Callable[[], str]:
    def imported() -> str:
        return str(getattr(importlib.import_module(name), "__version__", ""))

    return imported


def devices() -> dict[str, Any]:
    """What PyTorch can compute on. reason: why there is no GPU among it."""
    import torch

    found: list[dict[str, Any]] = [{"name": "cpu", "threads": torch.get_num_threads()}]
    reason = None
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        reason = "this PyTorch was built without CUDA"
    else:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
    for index in range(torch.cuda.device_count() if reason is None else 0):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            {
                "name": f"cuda:{index}",
                "model": about.name,
                "capability": f"{about.major}.{about.minor}",
                "memory_gib": round(total / (1 << 30), 1),
                "free_gib": round(free / (1 << 30), 1),
            }
        )
    return {"devices": found, "cuda": torch.version.cuda, "reason": reason}


def cpp() -> dict[str, Any]:
    """The C++ of CPUs: which instruction sets it has, and which one is used."""
    from invert_fast import _C  # type: ignore[attr-defined]

    wanted = os.environ.get("INVERT_FAST_ISA", "")
    _C.use_isa(wanted)  # ValueError for one that is not here
    return {
        "path": _C.__file__,
        "build": {name: str(value) for name, value in _C.build_info().items() if name != "clones"},
        "isa": _C.isa(),
        "isas": list(_C.isas()),
        "asked": wanted or None,
    }


def cuda() -> dict[str, Any]:
    """The CUDA C++: for which GPUs it was built, and how many there are."""
    from invert_fast import _cuda  # type: ignore[attr-defined]

    return {"path": _cuda.__file__, "architectures": str(_cuda.architectures()), "devices": _cuda.device_count()}


def backends() -> dict[str, dict[str, str]]:
    """Which backend runs which op, by kind of device."""
    import torch

    from invert_fast.ops import BACKENDS, choose

    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {op: {kind: choose(op, kind) for kind in kinds} for op in BACKENDS}


PARTS: dict[str, Callable[[], Any]] = {
    **{name: importing(name) for name in IMPORTED},
    "devices": devices,
    "cpp": cpp,
    "cuda": cuda,
    "backends": backends,
}


def main() -> None:
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")  # ours, whatever becomes of sys.stdout

    def say(**row: Any) -> None:
        out.write("\n" + MARK + json.dumps(row) + "\n")
        out.flush()

    for name, part in PARTS.items():
        say(part=name)
        try:
            found = part()
        except BaseException as error:  # whatever a broken installation raises is what is wanted to be known
            say(part=name, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        else:
            say(part=name, found=found)


if __name__ == "__main__":
    main()
