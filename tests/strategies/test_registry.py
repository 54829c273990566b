"""Strategies by name: the built-in ones, and those that an installed package adds by an entry point."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from invert_fast import Chain, Continuous, InputError, Inverter
from invert_fast.cli.main import main
from invert_fast.strategies import registry
from invert_fast.strategies.registry import BUILT_IN, names, strategy_named

from ..families import exact, make, texts

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "backwards-order"
version = "1.2"

[project.entry-points."invert_fast.strategies"]
backwards = "backwards:Backwards"
broken = "backwards:missing"
needy = "backwards:Needy"
hollow = "backwards:Hollow"
auto = "backwards:Backwards"

[tool.setuptools]
py-modules = ["backwards"]
"""
MODULE = '''
"""Tries every token from the last to the first: the whole of a strategy that is no part of invert_fast."""

from dataclasses import dataclass

import torch

from invert_fast.strategies.blocks import growing_blocks


@dataclass(frozen=True)
class Backwards:
    block: int = 64
    name: str = "backwards"

    def bind(self, context):
        return Proposer(self, context)


class Proposer:
    def __init__(self, settings, context):
        self.settings, self.context = settings, context

    def begin(self, slots):
        pass

    def propose(self, slots):
        scores = torch.arange(self.context.vocabulary.size, dtype=torch.float32).expand(len(slots), -1)
        return growing_blocks(self.context, slots, scores, self.settings.block, 1, self.settings.block)


class Needy:
    def __init__(self, what):
        pass


class Hollow:
    name = "hollow"
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder that the package was installed into, by pip."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "backwards.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *offline, str(source)], check=True, capture_output=True, text=True)
    return target


@pytest.fixture
def installed(site, monkeypatch):
    """The package can be imported, and the registry has not looked yet."""
    monkeypatch.syspath_prepend(str(site))
    registry._registered.cache_clear()
    yield
    registry._registered.cache_clear()
    sys.modules.pop("backwards", None)


def test_every_built_in_strategy_is_made_by_its_name():
    assert names()[: len(BUILT_IN)] == tuple(BUILT_IN)
    for name in BUILT_IN:
        assert strategy_named(name).name == name
    assert strategy_named("continuous") == Continuous.baseline()
    given = Chain(Continuous(), name="mine")
    assert strategy_named(given) is given
    with pytest.raises(InputError, match=r"'best' is unknown, expected one of auto, speculative, .*exhaustive"):
        strategy_named("best")


def test_a_strategy_of_another_package_recovers_texts(installed):
    assert names()[len(BUILT_IN) :] == ("backwards", "broken", "hollow", "needy")
    assert strategy_named("backwards").name == "backwards"
    truth, inverter = texts(5, 1, 3), Inverter(make("llama"))
    found = inverter.invert(inverter.capture(truth), "backwards")
    assert exact(found, truth)
    assert found[0].rank.tolist() == [299 - token for token in truth[0]]


def test_a_package_does_not_replace_what_is_built_in(installed):
    assert isinstance(strategy_named("auto"), Chain)


@pytest.mark.parametrize(
    ("name", "said"), [("broken", "missing"), ("needy", "argument"), ("hollow", r"a Hollow, expected an object with")]
)
def test_a_strategy_that_cannot_be_made_names_its_package(installed, name, said):
    with pytest.raises(InputError, match=rf"'{name}' of backwards-order 1\.2 .*{said}"):
        strategy_named(name)


def test_the_command_line_offers_it(site, tmp_path, monkeypatch):
    prompts, states = tmp_path / "prompts.txt", tmp_path / "states.safetensors"
    prompts.write_text("The tea is cold.\n")
    assert main(["capture", "--model", "bundled", "--input", str(prompts), "--output", str(states)]) == 0
    monkeypatch.setenv("PYTHONPATH", str(site))
    command = [sys.executable, "-m", "invert_fast", "invert", "--model", "bundled", str(states), "--json"]
    command += ["--output", str(tmp_path / "found.jsonl"), "--strategy", "backwards"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["strategy"] == "backwards"
    assert json.loads((tmp_path / "found.jsonl").read_text())["text"] == "The tea is cold."
