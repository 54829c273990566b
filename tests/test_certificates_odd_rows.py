"""Rows of unusual length or direction, and rows whose states are equal: told apart, or said to be ambiguous."""

from __future__ import annotations

import pytest
import torch

from invert_fast import Inverter

from .adversary import AMBIGUOUS, CERTIFIED, SMALL, all_residuals, drafted, judge, unit
from .families import build, embedding_table, exact, texts
from .pairs import all_but_pairwise_on_every_processor

pytestmark = pytest.mark.numeric


def shifted(model, scale: float) -> None:
    """LayerNorm subtracts the mean, so a constant added to a row is gone from every normed state."""
    for k in range(10):
        embedding_table(model)[2 * k + 1] = embedding_table(model)[2 * k] + scale * (k + 1)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("scale", [0.03, 0.3])
def test_rows_far_apart_with_equal_states_are_never_certified(family, scale):
    model = build(family)
    shifted(model, scale)
    inv = Inverter(model)
    truth = [0, 50, 3, 60, 8, 19]
    states = inv.capture([truth] * 3)
    assert (all_residuals(inv, [], states[0].hidden[0]) < 1e-5).sum() == 2, "the states are not equal"
    drafts = truth, [i ^ 1 if i < 20 else i for i in truth], [0] * 6
    for recovery in inv.invert(states, drafted(*drafts)):
        judge(inv, states[0], recovery, truth)


# How pairs of rows 2k, 2k + 1 may come to be hard to tell apart although they are not each other's likeness.
PAIRS = {
    "long and near": lambda a, k, g: (1e3 * a[0], 1e3 * a[0] + 1e-2 * a[0].norm() * unit(a, g)),
    "longer and near": lambda a, k, g: (1e3 * a[0], 1e3 * a[0] + 1e-3 * a[0].norm() * unit(a, g)),
    "rather long and near": lambda a, k, g: (10 * a[0], 10 * a[0] + 1e-2 * a[0].norm() * unit(a, g)),
    "long and parallel": lambda a, k, g: (1e3 * a[0], 1.5e3 * a[0]),
    "tiny": lambda a, k, g: (1e-4 * a[0], 1e-4 * a[1]),
    "shifted": lambda a, k, g: (a[0], a[0] + 0.3 * (k + 1)),
}


@pytest.mark.parametrize(
    ("kind", "layer", "family"),
    all_but_pairwise_on_every_processor([*PAIRS], [-1, "block:0", "embeddings"], ["gpt2", "llama"]),
)
def test_rows_of_unusual_length_or_direction_are_told_apart_or_said_to_be_ambiguous(family, layer, kind):
    """Noise-free states end exact: the drafted rival must not be taken while the true token fits better."""
    model, generator = build(family), torch.Generator().manual_seed(0)
    table = embedding_table(model)
    for k in range(10):
        table[2 * k], table[2 * k + 1] = PAIRS[kind](table[2 * k : 2 * k + 2].clone(), k, generator)
    for k in range(50, 110):  # many pairs that are nearer, and of the usual length: what calibration looks at
        table[2 * k + 1] = table[2 * k] + 1e-4 * table[2 * k].norm() * unit(table, generator)
    inv = Inverter(model, layer=layer)
    truth = [0, 40, 3, 60, 8, 19]
    states = inv.capture([truth] * 3)
    for recovery in inv.invert(states, drafted(truth, [i ^ 1 if i < 20 else i for i in truth], [0] * 6)):
        judge(inv, states[0], recovery, truth, sure=False)
        for t, token in enumerate(truth):
            assert token in {int(recovery.token_ids[t]), *recovery.alternatives.get(t, [])}
            assert recovery.status[t] in (CERTIFIED, AMBIGUOUS)


@pytest.mark.parametrize(
    ("family", "layer", "relative"),
    all_but_pairwise_on_every_processor(["gpt2", "llama", "opt"], [-1, "block:0", "embeddings"], [1e-3, 1e-5, 1e-6]),
)
def test_near_duplicates_among_a_few_very_long_rows(family, layer, relative):
    """A long row makes a long state: what separates typical tokens says nothing about those near it."""
    model, generator = build(family), torch.Generator().manual_seed(1)
    table = embedding_table(model)
    for k in range(10):
        way = torch.randn(table.shape[1], generator=generator)
        table[2 * k] *= 1e3
        table[2 * k + 1] = table[2 * k] + relative * table[2 * k].norm() * way / way.norm()
        table[100 + 2 * k + 1] = table[100 + 2 * k] * (1 + 1e-4)  # and ordinary pairs that calibration looks at first
    inv, truth = Inverter(model, layer=layer), [0, 50, 3, 60, 8, 19, 70]
    states = inv.capture([truth] * 3)
    for recovery in inv.invert(states, drafted(truth, [i ^ 1 if i < 20 else i for i in truth], [0] * 7)):
        judge(inv, states[0], recovery, truth, sure=False)


@pytest.mark.parametrize("layer", [-1, "embeddings"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_that_differ_by_less_than_the_states_can_show(family, layer, time_limit):
    """A difference that adding a position embedding rounds away: equal states of unequal rows."""
    model = build(family, **SMALL)
    table = embedding_table(model)
    for k in range(10):
        table[2 * k + 1] = table[2 * k]
        at = table[2 * k].abs().argmin()
        table[2 * k + 1, at] = torch.nextafter(table[2 * k, at], torch.tensor(torch.inf))
    inv = Inverter(model, layer=layer)
    truth = [0, 30, 3, 31, 8, 19]
    states = inv.capture([truth] * 3)
    with time_limit(5):
        found = inv.invert(states, drafted(truth, [i ^ 1 if i < 20 else i for i in truth], [0] * 6))
    for recovery in found:
        judge(inv, states[0], recovery, truth, sure=False)
        assert [CERTIFIED if i >= 20 else AMBIGUOUS for i in truth] == recovery.status.tolist()


def test_one_pair_that_is_hard_to_tell_apart_costs_only_its_own_texts():
    model = build("gpt_neox")
    shifted(model, 0.0)
    embedding_table(model)[2:20:2] = embedding_table(build("gpt_neox", 1))[2:20:2]
    embedding_table(model)[1] = embedding_table(model)[0] + 3e-3  # equal states but for rounding
    inv, truth = Inverter(model), [[i for i in ids if i > 20] for ids in texts(40, 40)]
    found = inv.invert(inv.capture(truth), drafted(*truth))
    assert exact(found, truth)
    assert sum(r.cost.forward_tokens for r in found) < 3 * sum(map(len, truth))
