"""What is asked for before any work imports no PyTorch, and one text costs no more than its own work.

How long a start takes is measured by `bench/bench_startup.py`.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from invert_fast import __version__
from invert_fast.cli.main import _parser
from invert_fast.cli.options import loading

HEAVY = {"torch", "transformers", "numpy", "safetensors", "tokenizers", "tqdm", "fastapi", "uvicorn", "httpx"}
RUN = """
import atexit, sys
atexit.register(lambda: print("imported:", *sys.modules))
{}
"""


def commands(parser: argparse.ArgumentParser, *before: str) -> Iterator[tuple[str, ...]]:
    """Every command, groups of commands and what is in them included."""
    yield before
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from commands(command, *before, name)


def output(code: str, *arguments: str) -> tuple[str, set[str]]:
    """What a process of its own printed, and the packages that it had imported at its end."""
    command = [sys.executable, "-c", RUN.format(code), *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    printed, _, imported = said.rpartition("imported: ")
    return printed, {name.partition(".")[0] for name in imported.split()}


ENTRY = "from invert_fast.cli.main import entry; entry()"


@pytest.mark.parametrize("command", [*commands(_parser())], ids=" ".join)
def test_help_imports_nothing_heavy(command):
    printed, imported = output(ENTRY, *command, "--help")
    assert printed.startswith(" ".join(("usage: invert-fast", *command, "")))
    assert not imported & HEAVY


def test_the_version_imports_nothing_heavy():
    printed, imported = output(ENTRY, "--version")
    assert printed == f"invert-fast {__version__}\n"
    assert not imported & HEAVY


PACKAGES = (
    "",
    ".explain",
    ".lens",
    ".logits",
    ".strategies",
    ".extract",
    ".lmi",
    ".serve",
    ".serve.security",
    ".doctor.examine",
    ".cli.main",
)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_what_is_asked_of_them(package):
    _, imported = output(f"import invert_fast{package}")
    assert not imported & HEAVY


def test_the_package_can_be_run():
    command = [sys.executable, "-m", "invert_fast", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"invert-fast {__version__}\n"


@pytest.mark.parametrize("on", [True, False])
def test_loading_leaves_the_collector_as_it_was(on):
    was, frozen = gc.isenabled(), gc.get_freeze_count()
    try:
        (gc.enable if on else gc.disable)()
        with loading():
            assert not gc.isenabled()
        assert gc.isenabled() == on
        assert gc.get_freeze_count() <= frozen
    finally:
        (gc.enable if was else gc.disable)()
