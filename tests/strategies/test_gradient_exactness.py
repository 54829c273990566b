"""The two gradient modes end exact on every family, from every start, with any settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from invert_fast import Chain, Continuous, Exhaustive, PerStepProjection, Status
from invert_fast.strategies import proxies
from invert_fast.strategies.registry import strategy_named

from ..families import FAMILIES, MORE, VOCAB, exact, inverter, texts
from .modes import LENGTHS, MODES, QUICK, SIPIT, modes


@pytest.mark.parametrize("family", ["qwen3", "llama"])  # of GPT-2's states the lens reads every token
def test_what_drafting_gives_up_a_few_steps_find(family, monkeypatch):
    """`auto` whose drafts give up at once: the steps come before all of the vocabulary, and find most."""
    truth, inv = texts(9, 4, 1), inverter(family)
    first, steps, _, last = strategy_named("auto").strategies
    assert isinstance(steps, PerStepProjection)
    assert isinstance(last, Exhaustive)
    found = inv.invert(inv.capture(truth), Chain(replace(first, max_candidates=0), steps, last))
    assert exact(found, truth)
    assert sum(r.cost.backward_tokens for r in found) > 0
    assert np.median(np.concatenate([r.rank for r in found])) < VOCAB // 3, "most before the vocabulary's turn"


@modes
@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_every_family_is_recovered_exactly(family, mode):
    truth, inv = texts(*LENGTHS), inverter(family)
    found = inv.invert(inv.capture(truth), MODES[mode])
    assert exact(found, truth)
    for recovery in found:
        assert (recovery.steps > 0).all()
        assert recovery.cost.backward_tokens >= recovery.steps.sum()
        assert recovery.cost.forward_tokens >= recovery.cost.backward_tokens + len(recovery.token_ids)


@modes
@pytest.mark.parametrize("layer", ["embeddings", "block:1"])
def test_inner_layers_are_recovered_exactly(layer, mode):
    truth, inv = texts(*LENGTHS), inverter("llama", layer)
    assert exact(inv.invert(inv.capture(truth), MODES[mode]), truth)


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine", "dot"])
@pytest.mark.parametrize("init", proxies.INITS)
def test_every_start_and_metric(metric, init):
    truth, inv = texts(4, 2), inverter("gpt2")
    states = inv.capture(truth)
    for strategy in (replace(QUICK, metric=metric, init=init), replace(SIPIT, metric=metric, init=init)):
        assert exact(inv.invert(states, strategy), truth)


@pytest.mark.parametrize("layer", [-1, "block:1"])
def test_a_search_from_the_prior_begins_at_its_mean_row(layer):
    """By the model's own logits, which inner layers ask a second pass for."""
    truth, inv = texts(4), inverter("llama", layer)
    (found,) = inv.invert(inv.capture(truth), replace(QUICK, init="prior", trace=True, trace_stride=1))
    assert exact([found], truth)
    model = inv.decoder.model
    with torch.no_grad():
        prior = model(torch.tensor(truth)).logits[0].softmax(-1)
    rows = model.get_input_embeddings().weight.detach()
    expected = [rows.mean(0), *(prior[:-1] @ rows)]
    assert len(found.trace["positions"]) == len(expected)
    for position, start in zip(found.trace["positions"], expected, strict=True):
        assert np.allclose(position.proxies[0], start, atol=1e-5)


def test_a_row_that_says_nothing_spoils_no_start():
    """The prior of a position comes from the row before it, which may be anything."""
    truth, inv = texts(5), inverter("gpt2")
    states = inv.capture(truth)[0].hidden.clone()
    states[2] *= 1e38
    (found,) = inv.invert(states, replace(SIPIT, max_steps=2, rest_block=VOCAB))
    assert (found.token_ids[:2] == truth[0][:2]).all()
    assert (found.status[:2] == Status.CERTIFIED).all()
    assert not (found.status[2:] == Status.CERTIFIED).any()


@pytest.mark.parametrize(
    "strategy",
    [
        replace(SIPIT, optimiser="adam", lr=0.1, clip=1.0),
        replace(PerStepProjection.official(), max_steps=20),
        replace(SIPIT, candidates_per_step=7),
        replace(SIPIT, snap_every=2),
        replace(SIPIT, project_every=3),
        replace(SIPIT, max_steps=0),
        replace(SIPIT, max_steps=1, rest_block=16),
        replace(QUICK, steps=1),
        replace(QUICK, steps=0),
        replace(QUICK, clip=None, growth=1),
        replace(QUICK, round=1, first_block=1, max_block=16),
    ],
    ids=repr,
)
def test_any_settings_end_exact(strategy, time_limit):
    truth, inv = texts(3, 1), inverter("llama")
    with time_limit(20):
        assert exact(inv.invert(inv.capture(truth), strategy), truth)


def test_settings_that_make_no_sense_are_refused():
    inv = inverter("gpt2")
    states = inv.capture(texts(2))
    for strategy in (replace(QUICK, init="ones"), replace(SIPIT, optimiser="lbfgs"), replace(QUICK, metric="l3")):
        with pytest.raises(ValueError, match="is unknown, expected"):
            inv.invert(states, strategy)
    with pytest.raises(ValueError, match="project_every 0, expected 1 or more"):
        inv.invert(states, replace(SIPIT, project_every=0))


def test_the_operating_points_are_those_of_table_1():
    points = [Continuous.fast(), Continuous.baseline(), Continuous.high_accuracy(seed=3)]
    assert [(p.steps, p.candidates) for p in points] == [(600, 100), (1000, 2000), (2000, 10_000)]
    for p in points:
        assert (p.lr, p.weight_decay, p.clip, p.loss_threshold, p.metric) == (0.05, 1e-5, 1.0, 1e-4, "l1")
    assert points[2].seed == 3
    assert strategy_named("continuous") == Continuous.baseline()
    assert strategy_named("sipit") == PerStepProjection()


def test_in_a_chain_the_rest_is_tried_by_the_next():
    truth, inv = texts(*LENGTHS), inverter("llama")
    states = inv.capture(truth)
    assert exact(inv.invert(states, Chain(replace(QUICK, steps=2, candidates=3), Exhaustive(block=64))), truth)
    given_up = replace(SIPIT, max_steps=2, rest_block=None)
    assert exact(inv.invert(states, Chain(given_up, replace(QUICK, steps=2))), truth)
