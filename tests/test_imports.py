"""Imports run one way, room by room: a reader gets from the API to the kernels without going round in circles."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "invert_fast"

# What each room imports of ours: no more, and no less. Everybody may import HELPERS, and modules of its own room.
HELPERS = {"types", "lazy"}
ALLOWED = {
    "types": {"reports", "storage"},  # a recovery shows itself; what may be shown; what rows were rounded to
    "reports": {"storage"},
    "lazy": set(),
    "kernels": set(),
    "baselines": set(),
    "calls": set(),
    "ops": {"kernels", "_C", "_cuda"},
    "storage": set(),
    "model": {"calls", "ops", "storage"},
    "lens": {"calls", "model", "ops", "storage"},
    "engine": {"model", "ops", "storage"},
    "strategies": {"engine", "lens", "model", "ops", "storage"},
    "logits": {"engine", "lens", "model", "storage"},
    "intake": {"model", "storage"},
    "mend": {"engine", "lens", "model", "ops"},
    "diagnose": {"engine", "lens", "mend", "model", "ops", "reports"},
    "defences": {"calls", "model"},  # an inverter that attacks them is handed in
    "inverter": {
        *("calls", "diagnose", "mend", "reports", "intake", "strategies", "logits", "engine", "lens", "model", "ops"),
        "storage",
    },
    "explain": {"inverter", "strategies", "engine", "lens", "model", "reports"},
    "figures": {"inverter", "strategies", "engine", "model", "reports", "storage"},
    "extend": {"engine", "lens", "ops", "strategies"},  # what other packages may build on, by name alone
    "integrations": {"inverter", "model", "reports", "storage"},
    "audit": {
        *("__init__", "inverter", "defences", "strategies", "engine", "lens", "model", "ops", "reports", "storage"),
    },
    "distributed": {"__init__", "inverter", "integrations", "intake", "engine", "model", "storage"},
    "extract": {"model", "storage"},
    "lmi": {"storage"},
    "serve": {"__init__", "inverter", "intake", "strategies", "engine", "storage"},
    "doctor": {"__init__", "ops", "storage", "_C", "_cuda"},
    "cli": {
        *("__init__", "inverter", "intake", "strategies", "logits", "engine", "lens", "model", "storage"),
        *("diagnose", "reports", "defences", "extract", "lmi", "baselines", "serve", "distributed", "doctor", "audit"),
        *("explain", "figures"),
    },
    "__main__": {"cli"},
    "__init__": {"diagnose", "inverter", "lens", "model", "storage", "strategies"},
}
OUTSIDE = {"bench", "tests", "tools", "setup"}
FLAT_MOST, LINES_MOST = 5, 300

MODULES = {
    **{path: path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / PACKAGE).rglob("*.py"))},
    **{path: (PACKAGE, "kernels", path.stem) for path in sorted((ROOT / "kernels").rglob("*.py"))},
}
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())


def imported(path: Path) -> set[tuple[str, ...]]:
    """Absolute names of all that a module imports, wherever in it the import stands."""
    package, found = MODULES[path][:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            found |= {(*base, alias.name) for alias in node.names}
    return found


def room(name: tuple[str, ...]) -> str:
    """`invert_fast.engine.protocol.Run` → `engine`; what is a name of the package itself → `__init__`."""
    there = {parts[1] for parts in MODULES.values()} | {"_C", "_cuda"}
    return name[1] if len(name) > 1 and name[1] in there else "__init__"


def edges(path: Path) -> set[str]:
    """The other rooms that a module imports from."""
    ours = {room(name) for name in imported(path) if name[0] == PACKAGE}
    return ours - {room(MODULES[path])}


@every_module
def test_imports_run_one_way(path):
    own = room(MODULES[path])
    assert own in ALLOWED, f"{own} is new: say in ALLOWED what it imports"
    assert edges(path) - ALLOWED[own] - HELPERS == set()


def test_the_table_says_what_is():
    """Every room in it exists, and every import in it is made."""
    there = {room(parts) for parts in MODULES.values()}
    assert set(ALLOWED) == there
    used: dict[str, set[str]] = {name: set() for name in there}
    for path, parts in MODULES.items():
        used[room(parts)] |= edges(path) - HELPERS
    assert {name: allowed - used[name] for name, allowed in ALLOWED.items() if allowed - used[name]} == {}


def test_the_table_itself_runs_one_way():
    order: list[str] = []
    rest = dict(ALLOWED)
    while rest:
        free = [name for name, uses in rest.items() if not uses & (rest.keys() - {name})]
        assert free, f"a circle among {sorted(rest)}"
        order += free
        rest = {name: uses for name, uses in rest.items() if name not in free}
    floors = [
        ["kernels"],
        ["ops"],
        ["model"],
        ["engine", "lens"],
        ["strategies", "logits", "intake", "diagnose"],
        ["inverter"],
        ["serve", "distributed", "audit"],
        ["cli"],
    ]
    for below, above in itertools.pairwise(floors):
        assert max(map(order.index, below)) < min(map(order.index, above)), f"{below} stands below {above}"


@every_module
def test_the_package_never_imports_what_is_not_installed_with_it(path):
    roots = {name[0] for name in imported(path)}
    assert not roots & (OUTSIDE | {"kernels"})


def test_only_the_adapter_and_the_sampler_know_hugging_face():
    knowing = {
        ".".join(MODULES[path][1:]) for path in MODULES if any(name[0] == "transformers" for name in imported(path))
    }
    adapter = {
        "model.attention",
        "model.decoder",
        "model.load",
        "model.numerics",
        "model.own_pass",
        "model.twin",
        "model.wrapped",
    }
    # the settings of `generate`; a type for a signature; the class of GPT-2's linear layers; quiet logging; an
    # encoder-decoder to train; and the published loops, which have nothing but Hugging Face's models
    others = {"lens.sampling", "inverter", "ops.linear", "cli.main", "lmi.bodies", "lmi.network"}
    loops = {f"baselines.{name}" for name in ("common", "continuous_loop", "sipit", "vma")}
    assert knowing == adapter | others | loops


def test_what_lies_flat_in_the_package_is_little():
    flat = sorted(path.name for path in (ROOT / PACKAGE).glob("*.py"))
    assert len(flat) <= FLAT_MOST, f"{', '.join(flat)}: what is new belongs in a room"


def test_no_file_is_long():
    folders = (PACKAGE, "kernels", "bench", "tools", "tests")
    files = [ROOT / "setup.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = {name: count for name, count in lines.items() if count >= LINES_MOST}
    assert long == {}, "a file of so many lines has two ideas"
