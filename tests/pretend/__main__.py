"""`python -m tests.pretend SCENES [GUARD]`: scenes on a pretended GPU, in a process of its own, told as JSON.

What stands in for `torch.cuda` is never taken back, so no test may share the process. SCENES: the module whose scenes
are run, `scenes` (with the harness itself), `beside` or `families`; GUARD: what `guard.build` made, which has to be
loaded before PyTorch is; without one the same is run on the CPU.
"""

from __future__ import annotations

import ctypes
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any


def on_cpu(module: str) -> dict[str, Any]:
    from .scenes import figures

    return {name: figures(scene()) for name, scene in _scenes(module, "cpu")}


def on_gpu(module: str, guard: Path) -> dict[str, Any]:
    ctypes.CDLL(str(guard), ctypes.RTLD_GLOBAL)
    from . import cuda

    cuda.begin()
    told: dict[str, Any] = {"scenes": _run(_scenes(module, "cuda"))}
    return told | _of_the_harness() if module == "scenes" else told


def _scenes(module: str, device: str) -> Iterator[tuple[str, Callable]]:
    return import_module(f"{__package__}.{module}").scenes(device)


def _of_the_harness() -> dict[str, Any]:
    from invert_fast import Inverter

    from . import faults

    told: dict[str, Any] = {
        "refused": {name: faults.refusal(fault) for name, fault in faults.REFUSED.items()},
        "counted": {name: faults.counted(fault) for name, (_, fault) in faults.COUNTED.items()},
        "free": {name: faults.counted(fault) for name, fault in faults.FREE.items()},
    }

    inverter = Inverter.from_pretrained("bundled", device="cuda")
    updates = (faults.fitting, faults.number, faults.mask, faults.constant)
    told["steps"] = {update.__name__: faults.recorded(inverter, update) for update in updates}
    return told


def _run(scenes) -> dict[str, dict[str, Any]]:
    """Of each scene: what it found, or how it failed; its stops by place, its rounds, its launches, its replays."""
    from invert_fast.engine import engine

    from . import cuda
    from .scenes import figures
    from .tensor import STOPS

    told: dict[str, dict[str, Any]] = {}
    rounds, step = [0], engine._Stream._step

    def counting(self, active):
        rounds[0] += 1
        step(self, active)

    engine._Stream._step = counting
    try:
        for name, scene in scenes:
            before, rounds[0], replays = STOPS.take(), 0, cuda.Graph.replays
            found = figures(scene())
            stops, launches = STOPS.take()
            told[name] = found | {
                "before": before[0].total(),
                "stops": {f"{kind} at {place}": count for (kind, place), count in stops.most_common()},
                "rounds": rounds[0],
                "launches": launches,
                "replays": cuda.Graph.replays - replays,
            }
    except Exception:  # the rest is worth knowing all the same
        told["failed"] = {"error": traceback.format_exc()}
    finally:
        engine._Stream._step = step
    told["recording"] = {"stops": {f"{kind} at {place}": n for (kind, place), n in STOPS.refused.items()}}
    return told


if __name__ == "__main__":
    print(json.dumps(on_gpu(sys.argv[1], Path(sys.argv[2])) if sys.argv[2:] else on_cpu(sys.argv[1])))
