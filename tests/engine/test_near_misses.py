"""A token that does not fit is no best match for being near, where the rest of its text fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from invert_fast import Speculative, Status
from invert_fast.engine.engine import Engine
from invert_fast.strategies.candidates import Candidates

from ..families import VOCAB, exact, inverter, texts

WRONG = (4, 9)  # positions that are drafted wrong


@pytest.fixture
def wrong_drafts(monkeypatch):
    draft = Candidates.draft

    def off(self, slots, hidden):
        ids, error = draft(self, slots, hidden)
        ids[:, WRONG] = (ids[:, WRONG] + 1) % VOCAB
        error[:, WRONG] = 0.0
        return ids, error

    monkeypatch.setattr(Candidates, "draft", off)


def engine(inv, **tolerances) -> Engine:
    """One that takes other tokens' states to be far apart: what misses its target by little is then nearer to it than
    any other could be."""
    measured = replace(inv.calibrate(), slope=(1e3, 1e3), **tolerances)
    return Engine(inv.decoder, inv.vocabulary, measured, Speculative(max_candidates=None), 4, 20, 1000)


@pytest.mark.usefixtures("wrong_drafts")
def test_in_a_text_that_fits_a_near_miss_is_repaired():
    inv, truth = inverter("gpt2"), texts(14, 14)
    states = inv.capture(truth)
    found = dict(engine(inv).run(enumerate(s.hidden for s in states)))
    assert exact([found[i] for i in range(2)], truth)


@pytest.mark.parametrize("at", [5, 11])
def test_a_row_that_nothing_fits_costs_some_candidates_and_not_all(at):
    """It is in doubt, and named so; the rows behind it are certified."""
    inv, (truth,) = inverter("gpt2"), texts(14)
    (states,) = inv.capture([truth])
    hidden, generator = states.hidden.clone(), torch.Generator().manual_seed(0)
    noise = torch.randn(hidden.shape[1], generator=generator)
    hidden[at] += 0.02 * hidden[at].norm() / noise.norm() * noise
    ((_, found),) = engine(inv).run([(0, hidden)])
    assert found.token_ids.tolist() == truth
    assert [i for i, s in enumerate(found.status) if s != Status.CERTIFIED] == [at]
    assert found.status[at] == Status.BEST_MATCH
    assert 64 <= found.cost.forward_tokens - len(truth) < VOCAB


def test_a_text_that_is_loud_throughout_is_searched_for_at_its_beginning_alone():
    inv, (truth,) = inverter("gpt2"), texts(16)
    (states,) = inv.capture([truth])
    noise = torch.randn(states.hidden.shape, generator=torch.Generator().manual_seed(0))
    noise *= 0.02 * states.hidden.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    ((_, found),) = engine(inv).run([(0, states.hidden + noise)])
    assert found.token_ids.tolist() == truth
    assert all(s == Status.BEST_MATCH for s in found.status)
    assert found.cost.forward_tokens - len(truth) < VOCAB
