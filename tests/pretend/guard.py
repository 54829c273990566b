"""The compiled part of the pretended GPU, `guard.cpp`: a few seconds for any C++ compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def build(folder: Path) -> Path:
    """Compile `guard.cpp`, which takes some seconds, with COMPILER."""
    import torch
    from torch.utils.cpp_extension import include_paths  # and with it setuptools

    assert COMPILER is not None
    built, library = folder / "guard.so", Path(torch.__file__).parent / "lib"
    headers = [f"-isystem{path}" for path in include_paths()]
    linked = [f"-L{library}", f"-Wl,-rpath,{library}", "-ltorch_cpu", "-lc10"]
    source = Path(__file__).with_name("guard.cpp")
    subprocess.run([COMPILER, "-std=c++20", "-shared", "-fPIC", *headers, source, "-o", built, *linked], check=True)
    return built
