"""`invert-fast doctor`: what is installed, what of it is in use, and why the rest is not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from .terminal import say


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "doctor",
        help="what is installed and in use, and why the rest is not",
        description="Show versions, devices, which compiled parts are in use and why others are not, the cache folder, "
        "optional packages with the command that installs them, and memory. A broken installation is told of, not "
        "stumbled over. Exit status: 0 nothing is wrong, 1 something is.",
    )
    one.add_argument("--json", action="store_true", help="print it as JSON")
    one.set_defaults(command=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from ..doctor.examine import examine

    found = examine()
    say(json.dumps(found, indent=2) if args.json else "\n".join(words(found)))
    return 1 if found["problems"] else 0


def words(found: dict[str, Any]) -> Iterator[str]:
    """What `examine` found, for people."""
    own, python = found["invert_fast"], found["python"]
    yield f"invert_fast {own['version']} in {own['path']}"
    yield f"Python {python['version']} ({python['executable']}), {python['platform']}"
    for name, about in found["packages"].items():
        broken = f": {about['error']}" if about["error"] else ""
        yield f"{name} {about['version'] or 'absent'}{broken}"
    yield from _devices(found)
    for name, what in (("cpp", "C++ for CPUs"), ("cuda", "CUDA C++"), ("triton", "Triton")):
        about = found["compiled"][name]
        use = "in use" if about["used"] else f"not in use: {about['reason']}"
        isa = f", {about['isa']} of {', '.join(about['isas'])}" if about.get("isa") else ""
        yield f"{what}: {use}{isa}"
    for op, chosen in found["backends"].items():
        yield f"  {op}: " + ", ".join(f"{backend} on {kind}" for kind, backend in chosen.items())
    for name, about in found["extras"].items():
        absent = f"without {', '.join(about['absent'])}: {about['install']}" if about["absent"] else "there"
        yield f"extra [{name}]: {absent}"
    yield _cache(found["cache"])
    total, free = found["memory"]["total_gib"], found["memory"]["available_gib"]
    yield "memory: not told by this system" if total is None else f"memory: {free} of {total} GiB available"
    yield from (f"PROBLEM: {problem}" for problem in found["problems"])
    if not found["problems"]:
        yield "nothing is wrong"


def _devices(found: dict[str, Any]) -> Iterator[str]:
    for device in found["devices"]:
        about = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in device.items() if name != "name")
        yield f"device {device['name']}: {about}"
    if found["no_gpu"]:
        yield f"no GPU: {found['no_gpu']}"


def _cache(about: dict[str, Any]) -> str:
    if about["path"] is None:
        return f"cache: none, {about['reason']}"
    size = f"{about['files']} files, {about['bytes'] / (1 << 20):.1f} MiB" if "files" in about else ""
    return f"cache: {about['path']}: " + "; ".join(filter(None, (size, about["reason"])))
