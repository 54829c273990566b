"""The blocks behind an inner layer, run from its states: they come to what the model's own whole pass does."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from invert_fast import Inverter
from invert_fast.lens.choose import choose_lens
from invert_fast.lens.linear import LinearLens
from invert_fast.model.decoder import Decoder
from invert_fast.model.reading import Reading
from invert_fast.model.twin import body_of
from invert_fast.ops.best_two import LISTED
from invert_fast.strategies.speculative import Speculative

from .. import zoo
from ..families import BLOCKS, FAMILIES, MORE, VOCAB, Tokenizer, build, exact, make, texts

ROOMS = ("strategies.candidates", "lens.linear_fit")


def ends_of_its_own(model, ids):
    with torch.no_grad():
        return body_of(model)(input_ids=ids, use_cache=False).last_hidden_state


def close(found, wanted) -> bool:
    off = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    return bool(off.max() < 1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
@pytest.mark.parametrize("layer", [1, f"block:{BLOCKS - 2}"])
def test_states_lead_to_what_the_model_itself_comes_to(family, layer):
    decoder = Decoder(make(family), layer=layer)
    ids = torch.tensor(texts(23, 23, seed=3))
    found = decoder.ends(decoder.states(ids))
    assert found is not None
    assert close(found, ends_of_its_own(decoder.model, ids))


@pytest.mark.parametrize(
    "family", ["gemma3_text", "qwen3_moe", "qwen2_moe", "granite", "cohere2", "olmo2", "starcoder2", "stablelm"]
)
def test_so_they_do_in_families_that_attend_or_end_otherwise(family):
    decoder = Decoder(zoo.build(family), layer=2)
    ids = torch.tensor(texts(40, 40, vocab=zoo.VOCAB, seed=3))
    found = decoder.ends(decoder.states(ids))
    assert found is not None
    assert close(found, ends_of_its_own(decoder.model, ids))


def test_texts_are_run_on_a_few_at_once_with_the_same_result(monkeypatch):
    decoder = Decoder(make("llama"), layer=1)
    states = decoder.states(torch.tensor(texts(9, 9, 9, 9, 9)))
    whole = decoder.ends(states)
    monkeypatch.setattr(import_module("invert_fast.model.onward"), "_AT_ONCE", 20)
    torch.testing.assert_close(decoder.ends(states), whole, rtol=1e-5, atol=1e-5)
    assert decoder.ends(states[:0]).shape == states[:0].shape


def test_positions_count_from_where_the_text_began():
    model = make("gpt2")  # absolute positions
    decoder = Decoder(model, layer=1).read_as(Reading(position_offset=7))
    ids = torch.tensor(texts(12))
    states = decoder.states(ids)
    with torch.no_grad():
        positions = torch.arange(7, 19)[None]
        own = body_of(model)(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    assert close(decoder.ends(states), own)


@pytest.mark.parametrize("reading", [Reading(centered=True), Reading(scale="unit"), Reading(prefix=(1,))])
def test_states_of_which_something_is_missing_lead_nowhere(reading):
    assert Decoder(make("llama"), layer=1).read_as(reading).onward is None


@pytest.mark.parametrize("layer", [0, -1, f"block:{BLOCKS - 1}"])
def test_there_is_nothing_to_run_before_the_first_block_nor_behind_the_last(layer):
    decoder = Decoder(make("llama"), layer=layer)
    assert decoder.onward is None
    states = decoder.states(torch.tensor(texts(5)))
    assert (decoder.ends(states) is None) == (layer == 0)


def test_blocks_that_do_not_give_the_models_own_states_are_not_used(monkeypatch):
    monkeypatch.setattr(import_module("invert_fast.model.onward").Onward, "__call__", lambda self, hidden: 1.1 * hidden)
    assert Decoder(make("llama"), layer=1).onward is None


def test_the_users_model_is_left_as_it_is():
    model = make("llama")
    before, ids = [*model.modules()], torch.tensor(texts(9))
    wanted = ends_of_its_own(model, ids)
    decoder = Decoder(model, layer=1)
    decoder.ends(decoder.states(ids))
    assert [*model.modules()] == before
    assert torch.equal(ends_of_its_own(model, ids), wanted)


def test_the_prior_finds_what_the_lens_does_not_see(monkeypatch):
    """A lens that drafts the same few tokens everywhere and scores all alike; texts that the model would write."""
    for room in ROOMS:
        monkeypatch.setattr(import_module(f"invert_fast.{room}"), "MANY_TOKENS", 1)
    model = build("llama", seed=5)
    inv = Inverter(model, Tokenizer(VOCAB), layer=2)
    truth = written(model, 12, 24)
    states = inv.capture(truth)
    choose_lens(inv.decoder, inv.vocabulary)  # fitted before it goes blind
    monkeypatch.setattr(LinearLens, "lists", lambda self, proxies: _blind(*proxies.shape[:2]))
    monkeypatch.setattr(LinearLens, "row_lists", lambda self, proxies: _blind(len(proxies)))
    for name in ("scores", "change_scores"):
        monkeypatch.setattr(LinearLens, name, _all_alike)
    monkeypatch.setattr(LinearLens, "proxies", lambda self, hidden: 0 * hidden)
    monkeypatch.setattr(LinearLens, "change_proxies", lambda self, state, *_: (0 * state, torch.zeros(VOCAB)))

    def cost() -> float:
        found = inv.invert(states, Speculative(max_candidates=None))
        assert exact(found, truth)
        return sum(r.cost.forward_tokens for r in found) / sum(map(len, truth))

    with_prior = cost()
    monkeypatch.setitem(vars(inv.decoder), "onward", None)
    assert with_prior < VOCAB / 10
    assert cost() > 5 * with_prior


def _blind(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(LISTED).expand(*shape, LISTED).clone(), torch.zeros(*shape, LISTED)


def _all_alike(self, state, wrong_state=None, wrong=None, ids=None) -> torch.Tensor:
    return torch.zeros(len(state), VOCAB if ids is None else ids.shape[1])


def written(model, count: int, length: int) -> list[list[int]]:
    """Texts that the model goes on with greedily, each from another token."""
    ids = torch.arange(3, 3 + count)[:, None]
    with torch.no_grad():
        for _ in range(length - 1):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids.tolist()
