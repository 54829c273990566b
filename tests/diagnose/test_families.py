"""Models without a tokenizer, and texts that a lens reads badly: what is right is found, what is wrong not believed."""

from __future__ import annotations

import copy

import pytest
import torch

from invert_fast import InputError, Inverter, Reading
from invert_fast.diagnose.evidence import factor, shifts_show
from invert_fast.diagnose.hypotheses import Hypothesis

from ..adversary import CERTIFIED
from ..families import build, inverter, make, texts
from ..readings import handed_out

CASES = {
    "one layer early": (2, Reading(), "block:1"),
    "centered": (2, Reading(centered=True), "block:1"),
    "scale": (-1, Reading(scale=0.37), "final_norm"),
    "unit": (-1, Reading(scale="unit"), "final_norm"),
    "unit, in the middle": (2, Reading(scale="unit"), "block:1"),
    "BOS": (-1, Reading(prefix=(1,)), "final_norm"),
    "two BOS": (-1, Reading(prefix=(1, 1)), "final_norm"),
    "BOS, in the middle": (2, Reading(prefix=(1,)), "block:1"),
    "shifted": (-1, Reading(position_offset=9), "final_norm"),
    "shifted and scaled": (-1, Reading(position_offset=9, scale=4.0), "final_norm"),
}


@pytest.mark.parametrize(
    ("name", "family"),
    [  # on every processor those for which no lens of another layer is fitted, of one family or the other by turns
        pytest.param(name, family, marks=[pytest.mark.slow] if (i + j) % 2 or CASES[name][0] != -1 else [])
        for i, name in enumerate(CASES)
        for j, family in enumerate(("gpt2", "llama"))
    ],
)
def test_the_reading_is_found_and_invert_certifies_with_it(family, name):
    (truth,), (layer, reading, place) = texts(20), CASES[name]
    rows = handed_out(make(family), layer, reading, truth)
    found = inverter(family).diagnose(rows)
    assert found.explained, found
    hypothesis = found.hypothesis
    assert hypothesis is not None
    assert hypothesis.layer == place
    shift = 0 if family == "llama" else reading.position_offset  # rotations do not tell where a text began
    assert hypothesis.reading.position_offset == shift
    assert (hypothesis.reading.centered, hypothesis.reading.prefix) == (reading.centered, reading.prefix)
    scale = reading.scale if isinstance(reading.scale, str) else pytest.approx(reading.scale, rel=1e-6)
    assert hypothesis.reading.scale == scale
    (again,) = Inverter(make(family), layer=hypothesis.layer, reading=hypothesis.reading).invert(rows)
    assert again.certified
    assert again.token_ids.tolist() == truth


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_states_of_another_model_are_not_explained(family):
    rows = handed_out(build(family, seed=1), -1, Reading(), texts(20)[0])
    found = inverter(family).diagnose(rows)
    assert not found.explained
    assert found.verdict == "none of the following explains it"
    assert all(not one.certified for one in found.tried.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_noise_is_not_explained(family):
    found = inverter(family).diagnose(torch.randn(20, 64, generator=torch.Generator().manual_seed(0)))
    assert not found.explained
    assert all(not one.certified for one in found.tried.values())


def test_how_many_rows_are_missing_is_told_where_positions_tell():
    rows = handed_out(make("gpt2"), -1, Reading(), texts(30, seed=4)[0])[6:]
    found = inverter("gpt2").diagnose(rows)
    assert not found.explained
    assert "some 6 rows of unknown tokens are missing" in found.notes[0]


def test_the_precision_of_a_pass_is_found():
    inv, (truth,) = inverter("gpt2"), texts(20)
    half = copy.deepcopy(make("gpt2")).to(torch.bfloat16)
    rows = handed_out(half, -1, Reading(), truth).float() * 1.01  # no longer numbers of that precision
    found = inv.diagnose(rows / 1.01)
    assert found.hypothesis is not None
    stored, computed = found.hypothesis.precision or ("", "")
    (again,) = inv.invert(rows / 1.01, states_dtype=stored, compute_dtype=computed)
    sure = again.status == CERTIFIED
    assert sure.mean() > 0.5
    assert (again.token_ids == truth)[sure].all()


def test_a_shift_shows_in_absolute_positions_alone():
    assert shifts_show(inverter("gpt2").decoder, texts(8)[0])
    assert not shifts_show(inverter("llama").decoder, texts(8)[0])


def test_factors():
    states = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    assert factor(states, states) is None
    assert factor(-states, states) is None
    assert factor(8 * states, states) == 8.0
    assert factor(states / 2, states) == 0.5
    assert factor(0.3 * states, states) == pytest.approx(0.3, rel=1e-6)


def test_of_two_that_fit_the_one_that_supposes_less_costs_less():
    plain, far = Hypothesis("block:1"), Hypothesis("block:1", Reading(scale="unit", position_offset=3))
    given = Hypothesis("final_norm")
    assert given.cost("final_norm") < plain.cost("final_norm") < far.cost("final_norm")
    assert Hypothesis("block:1", Reading(scale=2.0)).cost("block:1") < Hypothesis(
        "block:1", Reading(scale="unit")
    ).cost("block:1")


def test_what_cannot_be_looked_at_is_refused():
    inv = inverter("gpt2")
    for states, said in (
        ([], "no row to look at"),
        (torch.zeros(0, 64), "no row to look at"),
        (torch.zeros(3, 65), "65 wide, this model's are 64"),
        (torch.full((3, 64), torch.nan), "NaN or Inf"),
    ):
        with pytest.raises(InputError, match=said):
            inv.diagnose(states)
