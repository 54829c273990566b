"""Recorded passes: equal to the twin for every family, used when asked often, refused where anything is in doubt."""

from __future__ import annotations

import pytest
import torch

from invert_fast import Continuous, PerStepProjection
from invert_fast.model import program, replay
from invert_fast.model.lanes import Lanes
from invert_fast.model.program import record
from invert_fast.model.replay import Programs, programs_of
from invert_fast.ops import draft_attention

from ..families import FAMILIES, VOCAB, exact, inverter, texts

pytest.importorskip("invert_fast._C", reason="without the compiled library nothing is recorded")


with_tiles = pytest.mark.skipif(
    not draft_attention.available(), reason="drafts are recorded where there are tiles for the vectors in use"
)


@pytest.fixture
def at_once(monkeypatch):
    """Recorded on the first call."""
    monkeypatch.setattr(replay, "WARM_UP", 0)


def standing(decoder, length: int, batch: int) -> Lanes:
    """Lanes with prefixes of 0 … length tokens, at different positions."""
    lanes = Lanes(decoder, batch, length + 1)
    slots = torch.arange(batch)
    lanes.target_length[:] = length + 1
    ids = (torch.arange(batch * length) * 11 % VOCAB).view(batch, length)
    if length:
        lanes.draft(slots, ids)
        lanes.commit(slots, ids, 1 + slots % length, slots)
    return lanes


@pytest.mark.parametrize(
    ("family", "length"), [*((family, 6) for family in [*FAMILIES, "gemma2"]), ("gpt2", 0), ("llama", 0)]
)
def test_a_recorded_pass_equals_the_twin(family, length, at_once):
    """Forward, KV and gradient, at batch sizes and positions that were not recorded, in any order of lanes."""
    decoder = inverter(family).decoder
    programs = Programs()
    for batch in (1, 4, 9):
        lanes = standing(decoder, length, batch)
        for slots in (torch.arange(batch), torch.arange(batch).flip(0)[: (batch + 1) // 2]):
            embeds = decoder.embed((slots * 5 + 1) % VOCAB)
            held = lanes.hold(slots)
            target = torch.randn(len(slots), decoder.width, generator=torch.Generator().manual_seed(0))
            found = programs.gradient(decoder, embeds, held.positions, target, held.call)
            many = decoder.embed(torch.arange(len(slots) * 3).view(-1, 3) % VOCAB)
            call, positions = lanes.call(slots, causal=False), lanes.length[slots][:, None].expand(-1, 3)
            hidden = programs.fan_out(decoder, many, positions, call)
            if family in ("gemma2",):  # its attention is capped, which the compiled op does not do
                assert found is None
                assert hidden is None
                continue
            assert found is not None
            assert hidden is not None
            leaf = embeds.clone().requires_grad_()
            state = decoder.run(leaf[:, None], held.positions, lanes.hold(slots).call)[:, 0]
            loss = (state - target).square().mean(-1)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            torch.testing.assert_close(found[0], loss.detach(), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found[1], grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()))
            again = lanes.call(slots, causal=False)
            torch.testing.assert_close(hidden, decoder.run(many, positions, again), rtol=1e-4, atol=1e-5)
            assert sorted(call.own) == sorted(again.own)
            for layer, pair in again.own.items():
                for ours, theirs in zip(call.own[layer], pair, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@with_tiles
@pytest.mark.parametrize("length", [0, 6])
@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_a_recorded_draft_equals_the_twin(family, length, at_once):
    """States and KV, for numbers of lanes and tokens that were not recorded, in any order of lanes."""
    decoder = inverter(family).decoder
    programs = Programs()
    for batch, tokens in ((1, 1), (1, 9), (4, 2), (7, 12)):
        lanes = standing(decoder, length, batch)
        slots = torch.arange(batch).flip(0)
        embeds = decoder.embed((torch.arange(batch * tokens) * 7 + 1).view(batch, tokens) % VOCAB)
        positions = (lanes.length[slots][:, None] + torch.arange(tokens)).clamp_max(decoder.max_length - 1)
        call, again = lanes.call(slots, causal=True), lanes.call(slots, causal=True)
        hidden = programs.draft(decoder, embeds, positions, call)
        if family in ("gemma2",):
            assert hidden is None
            continue
        assert hidden is not None
        torch.testing.assert_close(hidden, decoder.run(embeds, positions, again), rtol=1e-4, atol=1e-5)
        assert sorted(call.own) == sorted(again.own)
        for layer, pair in again.own.items():
            for ours, theirs in zip(call.own[layer], pair, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@with_tiles
def test_texts_are_recovered_exactly_by_recorded_drafts(at_once):
    truth, inv = texts(40, 17, 1, 33, 5, seed=5), inverter("qwen3")
    states = inv.capture(truth)
    replay._of.pop(inv.decoder, None)
    found = inv.invert(states, batch_size=2)
    made = programs_of(inv.decoder)._made
    replay._of.pop(inv.decoder)
    assert made[("draft", False)] is not None
    assert exact(found, truth)
    assert all(r.certified for r in found)


@pytest.mark.parametrize("strategy", [PerStepProjection(), Continuous(steps=12, candidates=VOCAB, round=4)], ids=repr)
def test_texts_are_recovered_exactly_by_recorded_passes(strategy, at_once):
    truth, inv = texts(5, 2, 0, 4, 3, seed=5), inverter("llama")
    states = inv.capture(truth)
    replay._of.pop(inv.decoder, None)
    found = inv.invert(states, strategy, batch_size=2)
    made = programs_of(inv.decoder)._made
    replay._of.pop(inv.decoder)
    assert made[("gradient", True)] is not None
    assert made[("gradient", False)] is not None
    assert exact(found, truth)
    assert all(r.certified for r in found)
    assert sum(r.cost.backward_tokens for r in found) == sum(int(r.steps.sum()) for r in found)


def test_it_is_recorded_only_when_asked_often(monkeypatch):
    decoder, recorded = inverter("gpt2").decoder, []
    monkeypatch.setattr(replay, "WARM_UP", 3)
    monkeypatch.setattr(program, "record", lambda *_: recorded.append(1))
    lanes, slots = standing(decoder, 0, 2), torch.arange(2)
    held, programs = lanes.hold(slots), Programs()
    for _ in range(10):
        target = torch.zeros(2, decoder.width)
        assert programs.gradient(decoder, decoder.embed(slots), held.positions, target, held.call) is None
    assert recorded == [1], "and once only, whatever came of it"


@pytest.mark.parametrize(
    "run",
    [
        lambda x, p: (x * 2 if float(p.max()) > 3 else x,),
        lambda x, p: (x + x.shape[0],),
        lambda x, p: (x * (x.shape[0] == 13),),
        lambda x, p: (x.expand(x.shape) + torch.ones(13, 1, 1)[: x.shape[0]].mean() * x.shape[0],),
    ],
    ids=["looks at values", "counts lanes", "knows the recorded size", "scales with lanes"],
)
def test_a_pass_that_depends_on_more_than_its_kernels_is_refused(run):
    def example(B, N):
        return [torch.arange(B * N * 4.0).view(B, N, 4), torch.arange(B * N).view(B, N)]

    assert record(run, example) is None
    good = record(lambda x, p: ((x.view(-1, 4) @ torch.eye(4)).view(x.shape) + p[..., None],), example)
    assert good is not None
    x, p = example(7, 5)
    torch.testing.assert_close(good(x, p)[0], x + p[..., None])


def test_other_precisions_are_left_to_the_twin(at_once):
    decoder = inverter("gpt2").decoder
    lanes, slots = standing(decoder, 0, 2), torch.arange(2)
    held = lanes.hold(slots)
    low = decoder.embed(slots).bfloat16()
    target = torch.zeros(2, decoder.width)
    assert Programs().gradient(decoder, low, held.positions, target, held.call) is None
