"""Lanes of a gradient search: they do not change each other, wait for none, and try nothing twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invert_fast import States, Status
from invert_fast.engine.engine import _Stream
from invert_fast.engine.protocol import Block
from invert_fast.strategies import proxies

from ..families import VOCAB, exact, inverter, texts
from .modes import MODES, QUICK, SIPIT, figures, modes


@modes
def test_batch_size_and_order_do_not_change_the_result(mode):
    truth, inv = texts(3, 1, 0, 4, 2, 5), inverter("llama")
    states = inv.capture(truth)
    noise = torch.randn(states[3].hidden.shape, generator=torch.Generator().manual_seed(0))
    states[3] = States(states[3].hidden + 1.0 * noise, states[3].layer)  # one that fails
    runs = [inv.invert(states, MODES[mode], batch_size=size) for size in (1, 6)]
    runs += [inv.invert(states[::-1], MODES[mode], batch_size=3)[::-1]]
    assert not runs[0][3].certified
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert one.status.tolist() == other.status.tolist()


@modes
@pytest.mark.parametrize("init", ["token", "gaussian"])
def test_the_same_seed_gives_the_same_run_and_another_one_another(mode, init):
    truth, inv = texts(3, 2, 3), inverter("gpt2")
    states, strategy = inv.capture(truth), replace(MODES[mode], init=init)
    one, two = (inv.invert(states, strategy, batch_size=2) for _ in range(2))
    assert figures(one) == figures(two)
    other = inv.invert(states, replace(strategy, seed=7), batch_size=2)
    assert exact(one, truth)
    assert exact(other, truth)
    assert [r.rank.tolist() for r in one] != [r.rank.tolist() for r in other]


@modes
def test_a_lane_that_is_done_takes_the_next_text_while_the_others_go_on(mode, monkeypatch):
    truth, inv = texts(1, 6, 1, 1), inverter("gpt2")
    states, together = inv.capture(truth), []
    gradient = proxies.Proxies.gradient

    def watched(self: proxies.Proxies, slots: Tensor, *rest):
        together.append({int(i) for i in self.context.lanes.text[slots]})
        return gradient(self, slots, *rest)

    monkeypatch.setattr(proxies.Proxies, "gradient", watched)
    assert exact(inv.invert(states, MODES[mode], batch_size=2), truth)
    assert all(len(group) <= 2 for group in together)
    assert all(any({1, short} == group for group in together) for short in (0, 2, 3)), "the long text waits for nobody"


@pytest.mark.parametrize("strategy", [SIPIT, replace(SIPIT, candidates_per_step=5), QUICK], ids=repr)
def test_what_was_tried_is_banned(strategy, monkeypatch):
    """No candidate is verified twice at a position, whatever becomes of it."""
    inv = inverter("llama")
    hidden = torch.randn(3, inv.decoder.width, generator=torch.Generator().manual_seed(1))  # no text at all
    tried: dict[int, list[int]] = {}
    verify = _Stream._verify_block

    def watched(self: _Stream, block: Block) -> None:
        tried.setdefault(int(self.lanes.length[0]), []).extend(block.ids[block.ids >= 0].tolist())
        verify(self, block)

    monkeypatch.setattr(_Stream, "_verify_block", watched)
    (found,) = inv.invert([hidden], strategy)
    assert found.status[0] == Status.NOT_FOUND
    assert sorted(tried[0]) == list(range(VOCAB)), "every token exactly once before giving up"
    assert len(set(tried[1])) == len(tried[1])
