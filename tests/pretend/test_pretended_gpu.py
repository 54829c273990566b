"""The public API on a GPU that is pretended: nothing meets memory of the host, nothing waits more often than it did.

Tensors say they are on cuda:0 and are computed on the CPU (`tensor.py`), in a process of its own. What a device would
refuse raises there; what would make the host wait for it is counted, by line of ours. Kernels are no part of this: the
ops run as PyTorch's own, or as their formulas.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from invert_fast import Inverter

from . import faults, scenes
from .running import MARKS, run

pytestmark = MARKS
# Stops a round of each scene, and launches, with loading its texts, drafting them and handing them over: what they are,
# rounded up. Lower is better.
A_ROUND = {
    "auto, layer 0": (3, 90),
    "auto, layer 2": (4, 150),
    "auto, layer -1": (3, 230),
    "auto, layer -1, two lanes": (5, 340),
    "speculative": (3, 230),
    "continuous": (2, 290),
    "sipit": (5, 460),
    "prior": (4, 220),
    "exhaustive": (3, 180),
}


@functools.cache
def inverter() -> Inverter:
    return Inverter.from_pretrained("bundled", device="cpu")


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each scene finds on the CPU."""
    return run("scenes", tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with a pretended GPU tells."""
    return run("scenes", tmp_path_factory.mktemp("pretended"), pretended=True)


# ---- the harness notices what it is there for


@pytest.mark.parametrize("fault", faults.REFUSED)
def test_what_a_gpu_refuses_is_refused(fault, told):
    said = told["refused"][fault]
    assert said is not None
    expected = "TypeError" if fault == "an array" else "MixedDevicesError"
    assert said.startswith(expected)
    assert ("with a generator of the CPU" in said) == ("generator" in fault)


@pytest.mark.parametrize("fault", faults.COUNTED)
def test_each_kind_of_stop_is_counted_once(fault, told):
    assert told["counted"][fault] == [faults.COUNTED[fault][0]]


@pytest.mark.parametrize("what", faults.FREE)
def test_what_does_not_wait_is_not_counted(what, told):
    assert told["free"][what] == []


def test_a_stop_in_a_recorded_step_is_noticed(told):
    assert told["steps"]["fitting"] is None
    for update, kind in {"number": "item", "mask": "mask read", "constant": "from host"}.items():
        assert f"{kind} at model/cuda_graph.py" in told["steps"][update], update


# ---- the package


def test_every_scene_runs_to_its_end(told, on_cpu):
    """Above all: no tensor of the CPU, and no generator of its, met the device."""
    assert "failed" not in told["scenes"], told["scenes"]["failed"]["error"]
    assert {*on_cpu} == {*told["scenes"]} - {"recording"}


@pytest.mark.parametrize("layer", scenes.LAYERS)
@pytest.mark.parametrize("how", ["", ", first", ", two lanes"])
def test_every_layer_gives_the_tokens_that_it_gives_on_the_cpu(layer, how, told, on_cpu):
    check(f"auto, layer {layer}{how}", told, on_cpu)


@pytest.mark.parametrize("scene", [*scenes.BY_ITSELF, "from a file", "own pass", "spread", "logits"])
def test_every_strategy_gives_the_tokens_that_it_gives_on_the_cpu(scene, told, on_cpu):
    check(scene, told, on_cpu)


def check(scene: str, told: dict[str, Any], on_cpu: dict[str, Any]) -> None:
    found, ours = told["scenes"][scene], on_cpu[scene]
    assert found["tokens"] == ours["tokens"] == scenes.truth(inverter(), scene)
    assert found["certified"] == ours["certified"] == [True] * len(found["tokens"])


@pytest.mark.parametrize("scene", A_ROUND)
def test_a_round_stops_the_device_and_asks_it_no_more_often_than_it_did(scene, told):
    found, (stops, launches) = told["scenes"][scene], A_ROUND[scene]
    assert found["rounds"] > 0
    assert sum(found["stops"].values()) / found["rounds"] <= stops, table(found)
    assert found["launches"] / found["rounds"] <= launches, table(found)


def table(found: dict[str, Any]) -> str:
    rows = "\n".join(f"{count:5d} {stop}" for stop, count in found["stops"].items())
    return f"{found['rounds']} rounds, {found['launches']} launches; stops, by place:\n{rows}"


def test_a_recorded_step_of_the_gradient_modes_never_stops(told):
    assert told["scenes"]["recording"]["stops"] == {}
    replays = {name: found.get("replays", 0) for name, found in told["scenes"].items()}
    assert {name for name, count in replays.items() if count} == {*scenes.SEARCHES}, "steps were recorded, and replayed"
