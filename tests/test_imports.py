"""Imports run one way, so that a reader gets from the API to the kernels without going round in circles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "invert_fast"

# What each part may import of ours. Everybody may import `types`, and modules of its own part.
HELPERS = {"attempts", "cache", "calibrate", "ledger", "memory", "trace", "vocabulary"}
CORE = {"lanes", "model", "ops"}
ALLOWED = {
    "types": set(),
    "kernels": set(),
    "recording": set(),
    "native": {"_C"},
    "fan_out": {"native", "recording"},
    "draft_attention": {"fan_out", "native", "recording"},
    "gelu": {"native", "recording"},
    "product": {"native", "recording"},
    "best_two": {"native", "product"},
    "ops": {"draft_attention", "fan_out", "kernels", "native", "_cuda"},
    "twin": {"gelu", "product"},
    "prefix": set(),
    "program": {"draft_attention", "fan_out", "prefix", "recording"},
    "model": {"ops", "prefix", "program", "twin"},
    "lanes": {"model", "ops", "prefix"},
    "captured": {"lanes", "model", "ops", "prefix"},
    "attempts": set(),
    "vocabulary": CORE,
    "cache": {"model"},
    "memory": {"model"},
    "trace": {"ops"},
    "ledger": {"attempts", "calibrate", "lanes", "trace", "vocabulary"},
    "calibrate": {"cache", "vocabulary", *CORE},
    "lens": {"best_two", "draft_attention", "gelu", "product", *CORE, *HELPERS},
    "strategies": {"captured", "lens", *CORE, *HELPERS},
    "engine": {"strategies", "lens", *CORE, *HELPERS},
    "logits": {"engine", "strategies", "lens", "files", *CORE, *HELPERS},
    "inverter": {"engine", "strategies", "lens", "logits", *CORE, *HELPERS},
    "files": set(),
    "extract": {"inverter", "files", "logits"},
    "lmi": {"inverter", "files"},
    "report": {"inverter", "files"},
    "demo": {"inverter", "report", "model", "files"},
    "integrations": {"inverter", "files", "report", "strategies"},
    "fit_command": {"inverter", "files", "lens", "report"},
    "options": {"inverter"},
    "invert_command": {"calibrate", "files", "inverter", "options", "strategies"},
    "logits_command": {"logits", "extract", "lmi", "invert_command", "options", "inverter", "files", "report", "model"},
    "cli": {
        *("__version__", "demo", "fit_command", "invert_command", "options"),
        *("inverter", "files", "report", "strategies", "integrations", "logits_command"),
    },
    "__main__": {"cli"},
    "__init__": {"inverter", "strategies", "types"},
}
OUTSIDE = {"bench", "tests", "tools", "setup"}

MODULES = {
    **{path: path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / PACKAGE).rglob("*.py"))},
    **{path: (PACKAGE, "kernels", path.stem) for path in sorted((ROOT / "kernels").rglob("*.py"))},
}


def imported(path: Path, parts: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Absolute names of all that a module imports, wherever in it the import stands."""
    package, found = parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            found |= {(*base, alias.name) for alias in node.names}
    return found


def part(name: tuple[str, ...]) -> str:
    """`invert_fast.strategies.base.Run` → `strategies`; the package itself → `__init__`; `logits.invert_command`, which
    belongs to the command line → `logits_command`; `logits.extract` and `logits.lmi`, which use whole models, stand for
    themselves."""
    if name[1:2] == ("logits",) and len(name) > 2:
        if name[2].endswith("command"):
            return "logits_command"
        if name[2] in ("extract", "lmi"):
            return name[2]
    return name[1] if len(name) > 1 else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_one_way(path):
    own = part(MODULES[path])
    assert own in ALLOWED, f"{own} is new: say in ALLOWED what it may import"
    ours = {part(name) for name in imported(path, MODULES[path]) if name[0] == PACKAGE}
    assert ours - ALLOWED[own] - {"types", own} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_package_never_imports_what_is_not_installed_with_it(path):
    roots = {name[0] for name in imported(path, MODULES[path])}
    assert not roots & (OUTSIDE | {"kernels"})


def test_only_the_adapter_and_the_sampler_know_hugging_face():
    knowing = {
        ".".join(MODULES[path][1:])
        for path in MODULES
        if any(name[0] == "transformers" for name in imported(path, MODULES[path]))
    }
    # the others: a type for a signature, the settings of `generate`, quiet logging on the command line, and an
    # encoder-decoder to train; and the class of GPT-2's linear layers
    assert knowing <= {"model", "twin", "product", "inverter", "lens.sampling", "cli", "logits.lmi.network"}


def test_the_table_itself_runs_one_way():
    order: list[str] = []
    rest = dict(ALLOWED)
    while rest:
        free = [name for name, uses in rest.items() if not uses & (rest.keys() - {name})]
        assert free, f"a circle among {sorted(rest)}"
        order += free
        rest = {name: uses for name, uses in rest.items() if name not in free}
    assert order.index("kernels") < order.index("ops") < order.index("model") < order.index("lanes")
    assert order.index("lanes") < order.index("lens") < order.index("strategies") < order.index("engine")
    assert order.index("engine") < order.index("inverter") < order.index("cli")
