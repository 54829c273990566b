"""Scenes in a process of their own, and where they can be run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from . import guard

ROOT = Path(__file__).resolve().parents[2]
MARKS = [
    pytest.mark.skipif(
        guard.COMPILER is None, reason="autograd on a pretended GPU needs a C++ compiler: none was found"
    ),
    pytest.mark.skipif(
        sys.platform != "linux", reason="one function of PyTorch is replaced as the loader of Linux does"
    ),
    pytest.mark.skipif(
        torch.version.cuda is not None, reason="this PyTorch was built with CUDA: there it has one guard"
    ),
]


def run(module: str, folder: Path, pretended: bool = False) -> dict[str, Any]:
    """What `python -m tests.pretend` tells of a module's scenes, with nothing measured before."""
    cache, compiled = folder / "cache", [guard.build(folder)] if pretended else []
    cache.mkdir()
    own = {"INVERT_FAST_CACHE": str(cache), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.pretend", module, *map(str, compiled)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)
