"""Every strategy recovers every text of every family exactly, whatever the batch, the chunks and the memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from invert_fast import Chain, Exhaustive, Inverter, PriorOrder, Recovery, Speculative, States
from invert_fast.engine.engine import Engine, _Stream
from invert_fast.engine.protocol import Block, Context, Run
from invert_fast.model.lanes import Lanes

from ..families import BLOCKS, FAMILIES, POSITIONS, UNTESTED, VOCAB, build, embedding_table, exact, inverter, texts

STRATEGIES = {
    "auto": "auto",
    "exhaustive": Exhaustive(block=64),
    "prior": PriorOrder(),
    "speculative": Speculative(),
    "chain": Chain(Speculative(max_candidates=8), PriorOrder(max_candidates=64), Exhaustive()),
}
strategies = pytest.mark.parametrize("strategy", STRATEGIES)
MIXED = (5, 1, 0, 17, 2, 33, 0)


@dataclass(frozen=True)
class GivesUp:
    """Proposes nothing, or only the ids it was given, and leaves the rest to the next strategy."""

    ids: tuple[int, ...] = ()
    name: str = "gives up"

    def bind(self, context: Context) -> GivesUp.Proposer:
        return self.Proposer(self.ids, context)

    @dataclass
    class Proposer:
        ids: tuple[int, ...]
        context: Context

        def begin(self, slots: torch.Tensor) -> None: ...

        def propose(self, slots: torch.Tensor) -> list[Run | Block]:
            fresh = slots[self.context.attempts.tries[slots] == 0]
            if not self.ids or not len(fresh):
                return []
            return [Block(fresh, torch.tensor(self.ids).expand(len(fresh), -1))]


def same(a: list[Recovery], b: list[Recovery]) -> None:
    """Equal in all that a user relies on. Ranks may differ: they follow from the order of drafting."""
    for one, other in zip(a, b, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.status.tolist() == other.status.tolist()
        assert one.alternatives == other.alternatives
        assert one.text == other.text
        np.testing.assert_allclose(one.residual, other.residual, rtol=1e-3, atol=1e-5)


# ---- exactness


@pytest.mark.parametrize("family", [*FAMILIES, *UNTESTED])
@strategies
def test_every_strategy_is_exact_on_every_family(family, strategy):
    lengths = (*MIXED, POSITIONS) if family in ("gpt2", "llama", "opt") else MIXED
    truth = texts(*lengths)
    inv = inverter(family)
    assert exact(inv.invert(inv.capture(truth), STRATEGIES[strategy]), truth)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma"])
@pytest.mark.parametrize("layer", ["embeddings", "block:0", "block:1", f"block:{BLOCKS - 1}"])
@pytest.mark.parametrize("strategy", ["auto", "prior", "exhaustive"])
def test_inner_layers_are_exact(family, layer, strategy):
    truth, inv = texts(*MIXED), inverter(family, layer)
    assert exact(inv.invert(inv.capture(truth), STRATEGIES[strategy]), truth)


@strategies
def test_only_empty_texts(strategy):
    inv = inverter("gpt2")
    found = inv.invert(inv.capture([[], []]), STRATEGIES[strategy])
    assert [(len(r.token_ids), r.certified, r.first_failure) for r in found] == [(0, True, None)] * 2
    assert inv.invert([], STRATEGIES[strategy]) == []


@pytest.mark.parametrize("store_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("strategy", ["auto", "prior", "exhaustive"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma"])
def test_states_stored_in_half_precision_are_exact(family, strategy, store_dtype):
    truth, inv = texts(*MIXED), inverter(family)
    assert exact(inv.invert(inv.capture(truth, store_dtype=store_dtype), STRATEGIES[strategy]), truth)


def test_inner_states_of_a_trained_model_give_back_real_text(shared):
    inv = Inverter.from_pretrained(shared / "models" / "babyllama-tok105", "block:0", device="cpu")
    lines = (shared / "text" / "c4_eval.jsonl").read_text().splitlines()[:3]
    truth = [inv.encode(line[10:], max_tokens=40) for line in lines]
    found = inv.invert(inv.capture(truth))
    for recovery, ids in zip(found, truth, strict=True):
        classes = [set(inv.vocabulary.equals(i)) for i in ids]  # unused tokens of a trained model may be one
        for t, (token, status) in enumerate(zip(recovery.token_ids.tolist(), recovery.status.tolist(), strict=True)):
            assert {token, *recovery.alternatives.get(t, [])} == classes[t]
            assert status == (0 if len(classes[t]) == 1 else 2)


# ---- chains and order


def test_a_chain_goes_on_where_its_first_strategy_gives_up():
    truth, inv = texts(*MIXED), inverter("llama")
    states = inv.capture(truth)
    assert exact(inv.invert(states, Chain(GivesUp(), Exhaustive())), truth)
    assert exact(
        inv.invert(states, Chain(GivesUp((7, 8, 9)), GivesUp(), PriorOrder(max_candidates=20), Exhaustive())), truth
    )


def test_a_strategy_that_gives_up_is_said_to_have_failed():
    truth, inv = texts(4, 1), inverter("llama")
    found = inv.invert(inv.capture(truth), GivesUp())
    assert [r.status.tolist() for r in found] == [[3, 4, 4, 4], [3]]
    with pytest.raises(ValueError, match="at least one"):
        Chain()


def test_the_rank_counts_the_candidates_tried_before():
    truth, inv = texts(9, seed=4), inverter("gpt2")
    states = inv.capture(truth)
    (found,) = inv.invert(states, Exhaustive(block=50))
    assert found.rank.tolist() == truth[0], "by ascending id, the rank is the id"
    (found,) = inv.invert(states, PriorOrder())
    order = inv.decoder.log_probs(inv.decoder.capture(torch.tensor(truth)))[0].argsort(-1, descending=True)
    assert found.rank.tolist()[1:] == [order[t - 1].tolist().index(truth[0][t]) for t in range(1, 9)]


def test_the_prior_of_an_inner_layer_is_that_of_the_whole_model():
    truth = texts(9, 14, seed=4)
    inner, outer = (inverter("gpt2", layer) for layer in ("block:0", -1))
    ranks = [[r.rank.tolist() for r in inv.invert(inv.capture(truth), "prior")] for inv in (inner, outer)]
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize(
    "strategy",
    [
        PriorOrder(4, growth=1),
        PriorOrder(first_block=999),
        Speculative(1, growth=1),
        Speculative(lens="linear"),
        Exhaustive(1),
    ],
    ids=repr,
)
def test_any_block_sizes_end(strategy, time_limit):
    truth, inv = texts(4, 1), inverter("llama")
    with time_limit(5):
        assert exact(inv.invert(inv.capture(truth), strategy), truth)


# ---- invariance


def noisy_batch(inv: Inverter) -> list[States]:
    """Texts of every fate: clean, with noise, in half precision's rounding, and of no text at all."""
    truth, generator = (
        texts(5, 1, 0, 9, 17, 3, 8, 2, 33, 12, 1, 4, 0, 6, 21, 10, 7, 3),
        torch.Generator().manual_seed(0),
    )
    states = inv.capture(truth)
    for i, sigma in ((3, 3e-3), (6, 0.05), (9, 1.0), (13, 100.0)):
        hidden = states[i].hidden
        noise = torch.randn(hidden.shape, generator=generator) * hidden.square().mean().sqrt()
        states[i] = States(hidden + sigma * noise, states[i].layer)
    return states


@pytest.fixture(scope="module")
def batch() -> tuple[Inverter, list[States]]:
    model = build("qwen3")
    embedding_table(model)[20:40] = embedding_table(model)[40:60]  # some tokens cannot be told apart
    inv = Inverter(model)
    return inv, noisy_batch(inv)


@strategies
def test_the_number_of_lanes_does_not_change_the_result(batch, strategy):
    inv, states = batch
    alone, *others = (inv.invert(states, STRATEGIES[strategy], batch_size=size) for size in (1, 3, 16, None))
    assert {int(s) for r in alone for s in r.status} >= {0, 2, 3, 4}
    for other in others:
        same(alone, other)


@strategies
def test_a_text_does_not_care_which_texts_are_beside_it(batch, strategy):
    inv, states = batch
    together = inv.invert(states, STRATEGIES[strategy])
    same(together, [inv.invert(s, STRATEGIES[strategy])[0] for s in states])
    same(together, inv.invert(states[::-1], STRATEGIES[strategy])[::-1])


def test_twice_the_same_is_the_same(batch):
    inv, states = batch
    one, other = inv.invert(states, batch_size=3), inv.invert(states, batch_size=3)
    same(one, other)
    assert [(r.rank.tolist(), r.cost.forward_tokens) for r in one] == [
        (r.rank.tolist(), r.cost.forward_tokens) for r in other
    ]


# ---- memory


def engine(inv: Inverter, strategy, tokens_per_call: int, slots: int = 4, max_len: int = 33) -> Engine:
    return Engine(inv.decoder, inv.vocabulary, inv.calibrate(), strategy, slots, max_len, tokens_per_call)


def run(engine: Engine, states: list[States]) -> list[Recovery]:
    found = dict(engine.run(enumerate(s.hidden for s in states)))
    return [found[i] for i in range(len(states))]


@strategies
@pytest.mark.parametrize("tokens_per_call", [7, 64])
def test_a_forward_pass_never_computes_more_tokens_than_allowed(strategy, tokens_per_call, monkeypatch):
    truth, inv, sizes = texts(5, 1, 0, 12, 2), inverter("llama"), []
    states, work = inv.capture(truth), engine(inv, inv_strategy(strategy), tokens_per_call)
    inv.invert(states[:1], STRATEGIES[strategy])  # fits the lens
    fan_out, draft = Lanes.fan_out, Lanes.draft
    monkeypatch.setattr(
        Lanes, "fan_out", lambda self, s, e: (sizes.append(e.shape[:2].numel()), fan_out(self, s, e))[1]
    )
    monkeypatch.setattr(Lanes, "draft", lambda self, s, i: (sizes.append(i.numel()), draft(self, s, i))[1])
    assert exact(run(work, states), truth)
    assert max(sizes) <= tokens_per_call


def inv_strategy(name: str):
    return Chain(Speculative(), Exhaustive()) if name == "auto" else STRATEGIES[name]


@strategies
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_running_out_of_memory_halves_the_work_and_says_so(strategy, error, monkeypatch, caplog):
    truth, inv, most = texts(*MIXED), inverter("mistral"), 40
    states = inv.capture(truth)
    inv.invert(states[:1], STRATEGIES[strategy])
    forward = Lanes._run

    def limited(self, slots, embeds, positions, causal):
        if embeds.shape[:2].numel() > most and self.max_len == 33:
            raise error
        return forward(self, slots, embeds, positions, causal)

    work = engine(inv, inv_strategy(strategy), 1000)
    monkeypatch.setattr(Lanes, "_run", limited)
    with caplog.at_level(logging.WARNING, "invert_fast"):
        stream = _Stream(work, enumerate(s.hidden for s in states))
        found = dict(stream.recoveries())
    assert exact([found[i] for i in range(len(states))], truth)
    assert "out of memory" in caplog.text
    assert stream.tokens_per_call <= most
    assert work.tokens_per_call == 1000, "another run of the same engine begins anew"


def test_running_out_of_memory_for_the_prefix_storage_loses_nothing(monkeypatch, caplog):
    truth, inv = texts(*MIXED), inverter("llama")
    states = inv.capture(truth)
    inv.invert(states[:1])
    storage, failures = Lanes._storage, [1]

    def once(self, call, part):
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return storage(self, call, part)

    work = engine(inv, inv_strategy("auto"), 1000)
    monkeypatch.setattr(Lanes, "_storage", once)
    assert exact(run(work, states), truth)
    assert not failures
    assert "out of memory" in caplog.text


def test_errors_that_are_not_about_memory_are_raised(monkeypatch):
    inv = inverter("llama")
    states = inv.capture(texts(3))

    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Lanes, "fan_out", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        inv.invert(states, Exhaustive())


def test_the_plan_keeps_within_max_memory():
    truth, inv = texts(*MIXED), inverter("llama")
    states = inv.capture(truth)
    assert exact(inv.invert(states, max_memory=1e-4), truth)
    assert VOCAB < 1000
