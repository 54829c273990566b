"""What is public is documented, typed, and stays: docs/api.md is made from the docstrings, and names do not go away."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import logging
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import invert_fast
from invert_fast import Inverter, Speculative
from invert_fast.extend import Context, Proposer

from .families import make, texts

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/api_page.py; a warning of griffe is an error."""
    spec = importlib.util.spec_from_file_location("api_page", ROOT / "tools" / "api_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_docstrings_give(tool, caplog):
    with caplog.at_level(logging.WARNING, "griffe"):
        page = tool.page()
    assert [record.getMessage() for record in caplog.records] == []
    _, mark, written = tool.PAGE.read_text(encoding="utf-8").partition(tool.MARK)
    assert mark
    assert written.strip() == page.strip(), "docs/api.md is behind the docstrings: make api"


def test_everything_public_is_documented_and_typed(tool):
    assert tool.Surface().check() == []


def test_what_is_not_documented_or_typed_is_found(tool, tmp_path):
    package = tmp_path / "invert_fast"
    package.mkdir()
    (package / "__init__.py").write_text(
        'PUBLIC = ("invert_fast",)\n__all__ = ["bare", "Told"]\n'
        "def bare(x, y: int = 1): ...\n"
        'class Told:\n    """Told."""\n    kind: str\n    def __init__(self, z): self.z = z\n'
        "    def silent(self) -> int: ...\n    @property\n    def open(self): ...\n"
    )
    assert tool.Surface(tmp_path).check() == [
        "invert_fast has no docstring",
        "invert_fast.bare has no docstring",
        "invert_fast.bare: x has no type",
        "invert_fast.bare: what it returns has no type",
        "invert_fast.Told: z has no type",
        "invert_fast.Told.silent has no docstring",
        "invert_fast.Told.open has no docstring",
        "invert_fast.Told.open: what it returns has no type",
    ]


def test_the_page_shows_what_can_be_imported(tool):
    surface = tool.Surface()
    assert tuple(surface.modules) == invert_fast.PUBLIC
    for module in invert_fast.PUBLIC:
        there = importlib.import_module(module)
        assert [path.rpartition(".")[2] for path, _ in surface.members(module)] == [
            name for name in there.__all__ if name != "__version__"
        ]
        assert not hasattr(there, "nonsense")


def recorded() -> list[tuple[str, str, list[str]]]:
    """Version, name and parameters of all that was ever promised."""
    found = []
    for line in (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").splitlines():
        if line[:1].isdigit():
            version, name = line.split(" ", 1)
            name, _, parameters = name.rstrip(")").partition("(")
            found.append((version, name, [p for p in parameters.split(", ") if p]))
    return found


def missing(name: str, parameters: Sequence[str]) -> str:
    """What of a promise is not kept, empty where all is."""
    module = max((m for m in invert_fast.PUBLIC if name.startswith(f"{m}.")), key=len)
    found: Any = importlib.import_module(module)
    for part in name.removeprefix(f"{module}.").split("."):
        fields = {field for kind in getattr(found, "__mro__", ()) for field in inspect.get_annotations(kind)}
        if not hasattr(found, part):
            return "" if part in fields else f"{name} is gone"
        found = getattr(found, part)
    if not parameters:
        return ""
    taken = inspect.signature(found).parameters
    return "".join(f"{name} takes no {p}" for p in parameters if p not in taken)


def test_what_was_promised_is_there(tool):
    promises = recorded()
    assert len(promises) > 300
    assert [said for _, name, parameters in promises if (said := missing(name, parameters))] == []
    assert missing("invert_fast.Inverter.divine", []) == "invert_fast.Inverter.divine is gone"
    assert missing("invert_fast.Cost.luck", []) == "invert_fast.Cost.luck is gone"
    assert missing("invert_fast.Inverter.encode", ["spell"]) == "invert_fast.Inverter.encode takes no spell"


def test_what_is_public_is_promised(tool):
    promised = {f"{name}({', '.join(p)})" if p else name for _, name, p in recorded()}
    assert {name.removesuffix("()") for name in tool.names()} - promised == set(), "make api adds what is new"


class _Looks:
    """A strategy that keeps the context it gets, and does as another does."""

    name = "looks"
    seen: Context

    def bind(self, context: Context) -> Proposer:
        self.seen = context
        return Speculative(lens="linear").bind(context)


def test_what_a_strategy_is_promised_of_its_context_is_there(small_fits):
    """The list is in the docstring of `invert_fast.extend`."""
    inverter, looks = Inverter(make("llama")), _Looks()
    inverter.invert(inverter.capture(texts(3)), looks)
    said = importlib.import_module("invert_fast.extend").__doc__ or ""
    names = re.findall(r"`((?:decoder|vocabulary|lanes|attempts)\.\w+)(\(.*?\)|\[ids\])?`", said)
    assert len(names) > 15
    for name, called in names:
        holder, attribute = name.split(".")
        found = getattr(getattr(looks.seen, holder), attribute)
        if called.startswith("("):
            wanted = [p.strip() for p in called[1:-1].split(",")]
            assert list(inspect.signature(found).parameters)[: len(wanted)] == wanted, name


def test_the_examples_of_the_page_run(small_fits, tool):
    head = tool.PAGE.read_text(encoding="utf-8").partition(tool.MARK)[0]
    examples = re.findall(r"```python\n(.*?)```", head, re.DOTALL)
    assert len(examples) == 2
    for code in examples:
        space: dict[str, Any] = {}
        exec(compile(ast.parse(code), "docs/api.md", "exec"), space)
        assert space["inverter"].decoder.device.type == "cpu"


def test_the_tool_prints_the_page():
    done = subprocess.run([sys.executable, "tools/api_page.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("## `invert_fast`")
    assert done.stderr == ""
