"""Several calls in one pass: the same states, the same keys and values, the same texts and the same cost."""

from __future__ import annotations

import logging

import pytest
import torch

from invert_fast import Inverter, Speculative
from invert_fast.engine import together
from invert_fast.model import trial
from invert_fast.model.decoder import Decoder
from invert_fast.model.joint import Asked, joint_pass
from invert_fast.model.lanes import Lanes
from invert_fast.model.prefix import JointCall
from invert_fast.strategies import candidates

from ..families import FAMILIES, MORE, build, exact, texts

LENGTHS = (12, 3, 30, 1, 17, 22)


@pytest.fixture(autouse=True)
def small_models_join(monkeypatch):
    monkeypatch.setattr(trial, "JOINS_FROM", 0)


def lanes_at(inv: Inverter, lengths: tuple[int, ...]) -> Lanes:
    """Lanes that have committed so many tokens each."""
    lanes = Lanes(inv.decoder, len(lengths), 40)
    rows = texts(*[n or 1 for n in lengths])
    for slot, (n, row) in enumerate(zip(lengths, rows, strict=True)):
        slots = torch.tensor([slot])
        lanes.target_length[slot] = 40
        if n:
            lanes.draft(slots, torch.tensor([row]))
            lanes.commit(slots, torch.tensor([row]), torch.tensor([n]), torch.tensor([0]))
    return lanes


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
@pytest.mark.parametrize("lengths", [(9, 0, 14, 3, 6), (0, 0, 0, 0, 0)], ids=["behind prefixes", "from nothing"])
def test_each_call_gives_what_it_gives_alone(family, lengths):
    inv = Inverter(build(family))
    assert inv.decoder.joins
    lanes, generator = lanes_at(inv, lengths), torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 300, shape, generator=generator) for shape in ((2, 5), (1, 4), (2, 3))]
    asked = [
        Asked(torch.tensor([3, 0]), ids[0], True, "draft"),
        Asked(torch.tensor([2]), ids[1], False, "repair"),
        Asked(torch.tensor([1, 4]), ids[2], False, "rivals"),
    ]
    spent = lanes.forward_tokens.clone()
    found = joint_pass(lanes, asked)
    assert (lanes.forward_tokens - spent).tolist() == [5, 3, 4, 5, 3]
    assert lanes.parts[2, 1] - lanes.parts[1, 1] == 4, "to the part it was asked for"
    for one, passed in zip(asked, found, strict=True):
        wanted = (lanes.draft if one.causal else lanes.fan_out)(one.slots, one.ids)
        torch.testing.assert_close(lanes.resume(passed), wanted, rtol=1e-4, atol=1e-4)
        assert len(passed.call.own) == inv.decoder.blocks


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mistral"])
def test_lanes_go_on_from_their_part_of_a_pass(family):
    inv = Inverter(build(family))
    lanes, alone = lanes_at(inv, (9, 4)), lanes_at(inv, (9, 4))
    draft, block = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])
    one, two, first = torch.tensor([0]), torch.tensor([1]), torch.tensor([0])
    run, fan = joint_pass(lanes, [Asked(one, draft, True, "draft"), Asked(two, block, False, "repair")])
    lanes.resume(run)
    lanes.commit(one, draft, torch.tensor([2]), first)
    lanes.resume(fan)
    lanes.commit(two, block[:, 1:], torch.tensor([1]), first, torch.tensor([1]))
    alone.draft(one, draft)
    alone.commit(one, draft, torch.tensor([2]), first)
    alone.fan_out(two, block)
    alone.commit(two, block[:, 1:], torch.tensor([1]), first, torch.tensor([1]))
    assert lanes.length.tolist() == alone.length.tolist() == [11, 5]
    for ours, theirs in zip((*lanes.keys, *lanes.values), (*alone.keys, *alone.values), strict=True):  # type: ignore[misc]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
@pytest.mark.parametrize("listed", [False, True], ids=["small vocabulary", "lists"])
def test_texts_are_exact_and_certified_and_passes_are_fewer(family, listed, monkeypatch):
    monkeypatch.setattr(candidates, "MANY_TOKENS", 1 if listed else 1 << 30)
    inv, truth = Inverter(build(family, vocab=300), layer=2), texts(*LENGTHS * 2)
    states, passes, run = inv.capture(truth), [], type(inv.decoder).run
    inv.invert(states[:1])
    monkeypatch.setattr(
        type(inv.decoder), "run", lambda self, *args, **options: (passes.append(1), run(self, *args, **options))[1]
    )
    found = inv.invert(states, Speculative(max_candidates=None))
    joined = len(passes)
    assert exact(found, truth)
    monkeypatch.setattr(inv.decoder, "joins", False)
    passes.clear()
    apart = inv.invert(states, Speculative(max_candidates=None))
    assert exact(apart, truth)
    assert [r.cost.forward_tokens for r in apart] == [r.cost.forward_tokens for r in found]
    assert joined < len(passes) or len(passes) < 10


def test_where_memory_runs_out_calls_stay_apart_from_then_on(monkeypatch, caplog):
    inv, truth, failures = Inverter(build("llama"), layer=2), texts(*LENGTHS * 2), []
    states = inv.capture(truth)

    def fails(*_):
        failures.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(together, "joint_pass", fails)
    with caplog.at_level(logging.WARNING, "invert_fast"):
        assert exact(inv.invert(states), truth)
    assert len(failures) == 1
    assert "out of memory" in caplog.text


def test_other_errors_are_raised(monkeypatch):
    inv, truth = Inverter(build("llama"), layer=2), texts(*LENGTHS * 2)

    def fails(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(together, "joint_pass", fails)
    states = inv.capture(truth)
    with pytest.raises(RuntimeError, match="shapes"):
        inv.invert(states)


def test_a_model_that_does_not_give_the_same_does_not_join(monkeypatch):
    """The trial at load sees it, and calls stay apart."""
    run = Decoder.run

    def off(self, embeds, positions, call, *rest):
        return run(self, embeds, positions, call, *rest) * (1.1 if isinstance(call, JointCall) else 1.0)

    monkeypatch.setattr(Decoder, "run", off)
    inv, truth = Inverter(build("llama"), layer=2), texts(*LENGTHS)
    assert not inv.decoder.joins
    assert inv.decoder.own is None
    assert exact(inv.invert(inv.capture(truth)), truth)


def test_small_models_do_not(monkeypatch):
    monkeypatch.undo()
    assert not Inverter(build("llama")).decoder.joins
