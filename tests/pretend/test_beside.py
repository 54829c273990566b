"""The rest of the public API on a pretended GPU, small vocabularies and large: it finds what it finds on the CPU."""

from __future__ import annotations

from typing import Any

import pytest

from . import families
from .running import MARKS, run

pytestmark = MARKS
HARNESS = ("before", "stops", "rounds", "launches", "replays")


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("beside", tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = run("beside", tmp_path_factory.mktemp("pretended"), pretended=True)["scenes"]
    assert found.pop("recording") == {"stops": {}}
    assert "failed" not in found, found["failed"]["error"]
    return {name: {key: what for key, what in one.items() if key not in HARNESS} for name, one in found.items()}


def test_every_scene_finds_what_it_finds_on_the_cpu(told, on_cpu):
    assert {*told} == {*on_cpu}
    assert {name: told[name] for name in on_cpu if told[name] != on_cpu[name]} == {
        name: on_cpu[name] for name in on_cpu if told[name] != on_cpu[name]
    }


def test_what_is_found_is_right(told):
    """Of scenes that go wrong nowhere: else two faults that are alike would pass."""
    (first, second), sure = told["stored in bf16"]["tokens"], ("stored in bf16", "noise", "noise, told by itself")
    mended = {"mend mixed", *(f"{of}mend {edit}" for of in ("", "large, ") for edit in ("gap", "order", "steering"))}
    for name in {*sure, *mended, "a reading", "large, last", "large, inner", "large, inner, noise"}:
        assert {*map(tuple, told[name]["tokens"])} <= {tuple(first), tuple(second), tuple(second[: len(first)])}, name
        assert {code for row in told[name]["status"] for code in row} == {0}, name
    assert told["mend front"]["tokens"] == [first[1:]]
    for family in families.FEW:
        assert told[f"family {family}"] == {"tokens": families.IDS * 2, "status": [[0] * 5, [0] * 2] * 2}
    assert told["score"] == {"exact": 1.0}
    assert told["explain, last"]["found_id"] == told["explain, inner"]["found_id"] == first
    assert "100 % of the first" in told["diagnose nothing"]["verdict"]
    assert told["diagnose gap"]["options"] == "--edit gap"
    assert told["diagnose layer"]["options"] == "--layer block:0"
    assert told["one vector"]["tokens"] == [first[:2]]
