"""The linear lens: deterministic, and far better than chance."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from invert_fast import Inverter
from invert_fast.lens.measure import measure_repair
from invert_fast.lens.sampling import self_samples

from ..families import ON_EVERY_PROCESSOR, VOCAB, Tokenizer, build, embedding_table, exact, inverter, texts
from .lenses import captured, lens_of, same_drafts

pytestmark = pytest.mark.numeric

# ---- how good it is


@pytest.mark.parametrize("family", ON_EVERY_PROCESSOR)
def test_drafts_are_far_better_than_chance(family):
    inv = inverter(family)
    ids, states = captured(inv, *[40] * 8)
    lens = lens_of(inv)
    accuracy = (lens.draft(states) == ids).float().mean().item()
    assert accuracy > 50 / VOCAB
    assert accuracy > 0.5 * lens.accuracy > 0, "what the fit measured holds on texts it has not seen"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_states_that_are_embeddings_are_read_without_a_mistake(family):
    inv = inverter(family, "embeddings")
    ids, states = captured(inv, *[40] * 4)
    assert (lens_of(inv).draft(states) == ids).float().mean() > 0.95


def ranks(inv: Inverter, ids: torch.Tensor) -> dict[str, float]:
    """Mean number of tokens ahead of the true one where the draft is wrong: by the state alone, by the change from the
    wrong token's state, by both."""
    lens, states = lens_of(inv), inv.decoder.capture(ids)
    found: dict[str, list[int]] = {"state": [], "change": [], "both": []}
    proxies = lens.proxies(states)
    for t in range(ids.shape[1]):
        scores = lens.scores(proxies[:, t], torch.full((len(ids),), t == 0))
        wrong = scores.scatter(1, ids[:, t : t + 1], -torch.inf).argmax(-1)
        wrong_states = inv.decoder.capture(torch.cat([ids[:, :t], wrong[:, None]], 1))[:, -1]
        change, missed = lens.change_scores(states[:, t], wrong_states, wrong), scores.argmax(-1) != ids[:, t]
        for name, each in (("state", scores), ("change", change), ("both", scores + change)):
            each = each.scatter(1, wrong[:, None], -torch.inf)
            found[name] += (each > each.gather(1, ids[:, t : t + 1])).sum(-1)[missed].tolist()
    return {name: sum(each) / max(1, len(each)) for name, each in found.items()}


@pytest.mark.parametrize("family", ON_EVERY_PROCESSOR)
def test_where_the_draft_is_wrong_the_scores_rank_the_true_token_far_ahead(family):
    found = ranks(inverter(family), torch.tensor(texts(*[12] * 8, seed=5)))
    assert found["state"] < VOCAB / 8
    assert found["change"] < VOCAB / 5


def test_on_a_trained_model_state_and_change_together_tell_more_than_either(shared):
    inv = Inverter.from_pretrained(shared / "models" / "tinystories-656k", device="cpu")
    lines = (shared / "text" / "c4_eval.jsonl").read_text().splitlines()[:32]
    found = ranks(inv, torch.tensor([inv.encode(line[10:], max_tokens=12) for line in lines]))
    assert found["both"] < min(found["state"], found["change"]) < inv.vocabulary.size / 20


def test_scores_agree_with_the_draft():
    inv = inverter("gpt2")
    lens, (_, states) = lens_of(inv), captured(inv, 9, 9)
    drafted, proxies = lens.draft(states), lens.proxies(states)
    scores = [lens.scores(proxies[:, t], torch.full((2,), t == 0)) for t in range(9)]
    same_drafts(lens, states, torch.stack(scores, 1).argmax(-1), drafted)


@pytest.mark.parametrize("rows", [1, 3, 10_000])
def test_how_many_rows_are_scored_at_once_does_not_matter(rows, monkeypatch):
    inv = inverter("llama")
    lens, (_, states) = lens_of(inv), captured(inv, *[20] * 3)
    expected = lens.draft(states)
    monkeypatch.setattr(lens.best_two, "_compiled", False)
    monkeypatch.setattr(import_module("invert_fast.ops.best_two"), "_SCORES_CACHED", rows * 4 * VOCAB)
    same_drafts(lens, states, lens.draft(states), expected)


def test_the_measured_weights_rank_the_true_token_no_worse_than_the_change_alone():
    """Where the draft is wrong, on other texts than those the weights were measured on."""
    inv = inverter("gpt2")
    lens, (ids, states) = lens_of(inv), captured(inv, *[20] * 24, seed=8)
    again = measure_repair(inv.decoder, lens, ids, states)
    assert again == measure_repair(inv.decoder, lens, ids, states), "deterministic"
    assert 0 <= again.first <= 1
    assert again.row in (0, 1)
    assert again.first_block in (1, 2, 4, 8, 16, 32)


# ---- which tokens it may name


def test_only_candidates_are_drafted_and_scored():
    model = build("gpt2")
    embedding_table(model)[20:40] = embedding_table(model)[:20]
    inv = Inverter(model, Tokenizer(VOCAB - 50))
    lens, states = lens_of(inv), 10 * torch.randn(4, 30, inv.decoder.width, generator=torch.Generator().manual_seed(0))
    assert inv.vocabulary.allowed[lens.draft(states)].all()
    scores = lens.scores(lens.proxies(states)[:, 1], torch.zeros(4).bool())
    assert scores[:, ~inv.vocabulary.allowed].isneginf().all()
    assert lens.change_scores(states[:, 1], states[:, 0], torch.zeros(4).long())[:, 20:40].isneginf().all()


# ---- texts of one token


def test_texts_of_one_token():
    inv = inverter("llama")
    ids, states = captured(inv, *[1] * 40)
    drafted = lens_of(inv).draft(states)
    assert drafted.shape == (40, 1)
    assert (drafted == ids).float().mean() > 0.3


def test_a_model_of_very_short_texts():
    for positions in (2, 3):
        model = build("gpt2")
        model.config.max_position_embeddings = positions  # what the package goes by
        inv, truth = Inverter(model), texts(positions, 1)
        assert exact(inv.invert(inv.capture(truth)), truth)


# ---- training texts


def test_training_texts_are_the_models_own_mixed_with_random_tokens():
    model = build("gpt2")
    inv, state = Inverter(model, Tokenizer(VOCAB - 30)), torch.get_rng_state()
    settings = model.generation_config.to_dict()
    ids = self_samples(inv.decoder, inv.vocabulary, 9, 20, seed=3)
    assert ids.shape == (9, 20)
    assert inv.vocabulary.usable[ids].all()
    assert torch.equal(ids, self_samples(inv.decoder, inv.vocabulary, 9, 20, seed=3))
    assert not torch.equal(ids, self_samples(inv.decoder, inv.vocabulary, 9, 20, seed=4))
    assert torch.equal(torch.get_rng_state(), state), "the global random generator moved"
    assert model.generation_config.to_dict() == settings
    surprise = -inv.decoder.log_probs(inv.decoder.capture(ids))[:, :-1].gather(2, ids[:, 1:, None]).mean((1, 2))
    own, _mixed, random = (surprise[k::3].mean() for k in range(3))
    assert own < random - 0.5, "the first third is what the model would write"
