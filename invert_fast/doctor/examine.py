"""Everything `invert-fast doctor` tells, as one dictionary, and what of it is a problem. Imports nothing that may be
broken: that is done by `probe.py`, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..storage import cache
from .probe import IMPORTED, MARK, PARTS

PACKAGE = Path(__file__).absolute().parents[1]
OPTIONAL = {"triton"}  # without it everything runs, on GPUs more slowly
_HIDDEN = ("test", "dev")  # extras for those who work on invert_fast itself
_LONGEST = 180.0  # seconds that the imports may take
_REQUIREMENT = re.compile(r"""([A-Za-z0-9._-]+).*extra\s*==\s*['"]([^'"]+)['"]""")


def examine() -> dict[str, Any]:
    """What is installed and used. problems: sentences of what is wrong and what to do about it; without any, all that
    is needed is there."""
    told = probe()
    packages = {name: _package(name, told) for name in IMPORTED}
    found: dict[str, Any] = {
        "invert_fast": {"version": __version__, "path": str(PACKAGE)},
        "python": {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()},
        "packages": packages,
        **_devices(told),
        "compiled": {"cpp": _extension("_C", told["cpp"]), "cuda": _extension("_cuda", told["cuda"])},
        "backends": told["backends"].get("found", {}),
        "extras": extras(),
        "cache": cache_folder(),
        "memory": memory(),
    }
    found["compiled"]["triton"] = _triton(found)
    found["problems"] = _problems(found, told)
    return found


def probe() -> dict[str, dict[str, Any]]:
    """What each part of `probe.py` found, or the error that it ended with."""
    command = [sys.executable, "-m", "invert_fast.doctor.probe"]
    path = os.pathsep.join(entry for entry in (str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")) if entry)
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_LONGEST, check=False, env={**os.environ, "PYTHONPATH": path}
        )
        output, ending = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as error:
        output, ending = error.stdout or b"", f"does not come to an end within {_LONGEST:g} s"
    except OSError as error:
        output, ending = b"", f"cannot be started: {error.strerror}"
    rows = [
        json.loads(line.removeprefix(MARK))
        for line in output.decode("utf-8", "replace").splitlines()
        if line.startswith(MARK)
    ]
    told = {row["part"]: row for row in rows}
    last = rows[-1]["part"] if rows else next(iter(PARTS))
    for name in PARTS:
        row = told.setdefault(name, {"part": name})
        if not row.keys() & {"found", "error"}:
            row["error"] = f"the process that tries it {ending}" if name == last else f"not tried: {last} {ending}"
    return told


def _ending(code: int) -> str:
    if code >= 0:
        return f"ends with status {code}"
    try:
        return f"dies of {signal.Signals(-code).name}"
    except ValueError:
        return f"dies of signal {-code}"


def _package(name: str, told: dict[str, Any]) -> dict[str, Any]:
    """version: as installed, None where it is not; error: why it cannot be imported."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = None
    return {"version": version or told[name].get("found"), "error": told[name].get("error")}


def _devices(told: dict[str, Any]) -> dict[str, Any]:
    about = told["devices"].get("found")
    if about is None:
        return {"devices": [], "no_gpu": told["devices"]["error"]}
    return {"devices": about["devices"], "no_gpu": about["reason"]}


def _extension(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A compiled library: used, or why it is not."""
    if "found" in row:
        about = dict(row["found"])
        if name == "_cuda" and not about["devices"]:
            return {"used": False, "reason": "it was built, and there is no GPU", **about}
        return {"used": True, "reason": None, **about}
    files = sorted(path.name for path in PACKAGE.glob(f"{name}.*") if path.suffix in (".so", ".pyd"))
    if not files:
        wanted = "a C++ compiler" if name == "_C" else "nvcc (INVERT_FAST_CUDA=on)"
        return {"used": False, "reason": f"it was not built: {wanted} is needed at install time", "built": False}
    return {"used": False, "reason": f"{', '.join(files)} cannot be used: {row['error']}", "built": True}


def _triton(found: dict[str, Any]) -> dict[str, Any]:
    about = found["packages"]["triton"]
    if about["error"] is not None:
        return {"used": False, "reason": about["error"]}
    if len(found["devices"]) < 2:
        return {"used": False, "reason": f"it is for GPUs, and there is none: {found['no_gpu']}"}
    return {"used": True, "reason": None}


def extras() -> dict[str, dict[str, Any]]:
    """Optional extras: their packages, which are absent, and the command that brings them."""
    try:
        requires = metadata.requires("invert_fast") or []
    except metadata.PackageNotFoundError:
        return {}
    of: dict[str, list[str]] = {}
    for line in requires:
        if (match := _REQUIREMENT.match(line)) and match[2] not in _HIDDEN:
            of.setdefault(match[2], []).append(match[1])
    return {name: _extra(name, packages) for name, packages in sorted(of.items())}


def _extra(name: str, packages: list[str]) -> dict[str, Any]:
    absent = []
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            absent.append(package)
    install = f"pip install 'invert_fast[{name}]'"
    return {"packages": packages, "absent": absent, "install": install if absent else None}


def cache_folder() -> dict[str, Any]:
    """Where what was measured is kept, how much it is, and whether it can be written to."""
    folder = cache.folder()
    if folder is None:
        return {"path": None, "reason": "INVERT_FAST_CACHE is off"}
    files, size = 0, 0
    try:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_file():
                files, size = files + 1, size + path.stat().st_size
    except OSError as error:
        return {"path": str(folder), "reason": f"it cannot be read: {error.strerror}"}
    there = next(path for path in (folder, *folder.parents) if path.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    reason = None if writable else "it cannot be written to: everything is measured again each time"
    return {"path": str(folder), "files": files, "bytes": size, "writable": writable, "reason": reason}


def memory() -> dict[str, float | None]:
    """Of this machine, GiB; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
        return {
            name: round(kib[key] / (1 << 20), 1)
            for name, key in (("total_gib", "MemTotal"), ("available_gib", "MemAvailable"))
        }
    except (OSError, ValueError, KeyError, IndexError):
        return {"total_gib": None, "available_gib": None}


def _problems(found: dict[str, Any], told: dict[str, Any]) -> list[str]:
    problems = [
        f"{name} cannot be imported ({about['error']}): pip install --force-reinstall {name}"
        for name, about in found["packages"].items()
        if about["error"] is not None and name not in OPTIONAL
    ]
    compiled = found["compiled"]
    if not compiled["cpp"]["used"]:
        problems.append(
            f"the C++ for CPUs is not in use, {compiled['cpp']['reason']}: PyTorch does its work, more slowly; install "
            "again where a compiler is, `pip install -v` shows what stands in its way"
        )
    if compiled["cuda"].get("built") and not compiled["cuda"]["used"]:
        problems.append(f"the CUDA library is not in use, {compiled['cuda']['reason']}: install again")
    if len(found["devices"]) > 1 and not compiled["triton"]["used"]:
        problems.append(f"Triton is not in use on the GPU ({compiled['triton']['reason']}): pip install triton")
    if "error" in told["backends"] and not problems:
        problems.append(f"the ops cannot be chosen ({told['backends']['error']}): install invert_fast again")
    if found["cache"].get("reason") and found["cache"]["path"] is not None:
        problems.append(f"the cache folder {found['cache']['path']}: {found['cache']['reason']}: set INVERT_FAST_CACHE")
    if importlib.util.find_spec("invert_fast.bundled") is None and not (PACKAGE / "bundled" / "config.json").is_file():
        problems.append("the bundled model is not there: install invert_fast again")
    return problems
