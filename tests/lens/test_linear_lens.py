"""The linear lens: deterministic, kept, refitted when damaged, and far better than chance."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from invert_fast import Inverter
from invert_fast.cli import demo
from invert_fast.lens import LinearLens, choose_lens, linear_fit, store
from invert_fast.lens.linear_fit import fit_linear
from invert_fast.lens.measure import measure_repair
from invert_fast.lens.sampling import self_samples
from invert_fast.lens.second_look import doubtful, look_again

from ..families import FAMILIES, VOCAB, Tokenizer, build, embedding_table, exact, inverter, make, texts


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path))
    return tmp_path


def lens_of(inv: Inverter, seed: int = 0) -> LinearLens:
    return store.linear_lens(inv.decoder, inv.vocabulary, seed)


def captured(inv: Inverter, *lengths: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor(texts(*lengths, seed=seed))
    return ids, inv.decoder.capture(ids)


# ---- how good it is


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
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
    for t in range(9):
        scores = lens.scores(proxies[:, t], torch.full((2,), t == 0))
        assert torch.equal(scores.argmax(-1), drafted[:, t])


@pytest.mark.parametrize("rows", [1, 3, 10_000])
def test_how_many_rows_are_scored_at_once_does_not_matter(rows, monkeypatch):
    inv = inverter("llama")
    lens, (_, states) = lens_of(inv), captured(inv, *[20] * 3)
    expected = lens.draft(states)
    monkeypatch.setattr(lens.best_two, "_compiled", False)
    monkeypatch.setattr(import_module("invert_fast.ops.best_two"), "_SCORES_CACHED", rows * 4 * VOCAB)
    assert torch.equal(lens.draft(states), expected)


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


# ---- kept and mended


def test_fitting_twice_gives_the_same_lens():
    inv = inverter("qwen3")
    one = fit_linear(inv.decoder, inv.vocabulary)
    torch.manual_seed(99)
    other, different = fit_linear(inv.decoder, inv.vocabulary), fit_linear(inv.decoder, inv.vocabulary, seed=1)
    assert one.accuracy == other.accuracy
    for name, part in one.parts.items():
        assert torch.equal(part.project, other.parts[name].project)
        assert torch.equal(part.gram, other.parts[name].gram)
    assert not torch.equal(one.parts["rest"].project, different.parts["rest"].project)


def test_a_stored_lens_is_the_fitted_one(cache, monkeypatch):
    inv = inverter("gpt2")
    _, states = captured(inv, 30, 30)
    fitted = lens_of(inv)
    (file,) = cache.iterdir()
    assert file.suffix == ".safetensors"
    monkeypatch.setattr(linear_fit, "fit_linear", lambda *_: pytest.fail("fitted again"))
    stored = lens_of(Inverter(make("gpt2")))
    assert stored.accuracy == fitted.accuracy
    assert torch.equal(stored.draft(states), fitted.draft(states))
    for name, part in fitted.parts.items():
        assert torch.equal(part.bias, stored.parts[name].bias)


def test_a_lens_is_stored_for_each_model_layer_vocabulary_and_seed(cache):
    for inv, seed in (
        (inverter("gpt2"), 0),
        (inverter("gpt2"), 1),
        (inverter("gpt2", "block:0"), 0),
        (Inverter(make("gpt2"), Tokenizer(200)), 0),
        (Inverter(make("gpt2", 1)), 0),
    ):
        lens_of(inv, seed)
    assert len(list(cache.iterdir())) == 5


def described(accuracy: float, **repair) -> dict[str, str]:
    """What a lens file says of itself."""
    return {"about": json.dumps({"accuracy": accuracy, "repair": {"first_block": 4, **repair}})}


DAMAGES = [
    "empty",
    "text",
    "cut",
    "no metadata",
    "accuracy is no number",
    "a repair of nonsense",
    "a part is missing",
    "other shapes",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_lens_is_fitted_again_and_said_so(cache, caplog, damage):
    inv = Inverter(make("gpt2"))  # of its own: a lens is read once for each decoder
    _, states = captured(inv, 30)
    expected = lens_of(inv).draft(states)
    (file,) = cache.iterdir()
    whole, metadata = file.read_bytes(), described(0.5)
    kept = load(whole)
    tensors = dict(kept)
    if damage == "no metadata":
        file.write_bytes(save(tensors))
    elif damage == "accuracy is no number":
        file.write_bytes(save(tensors, described(float("nan"))))
    elif damage == "a repair of nonsense":
        file.write_bytes(save(tensors, described(0.5, first_block=10**9)))
    elif damage == "a part is missing":
        del tensors["change.gram"]
        file.write_bytes(save(tensors, metadata))
    elif damage == "other shapes":
        file.write_bytes(save({name: t[:3, :3].clone() for name, t in tensors.items()}, metadata))
    else:
        file.write_bytes({"empty": b"", "text": b"not a lens", "cut": whole[: len(whole) // 2]}[damage])
    truth = texts(12)
    with caplog.at_level(logging.WARNING, "invert_fast"):
        assert exact(inv.invert(inv.capture(truth)), truth)
        assert torch.equal(lens_of(inv).draft(states), expected)
    assert str(file) in caplog.text
    mended = load(file.read_bytes())
    assert all(torch.equal(tensor, mended[name]) for name, tensor in kept.items())


def test_a_lens_of_nonsense_costs_time_and_nothing_else(cache):
    inv, truth = Inverter(make("gpt2")), texts(12, 1, 5)  # of its own: a lens is read once for each decoder
    lens_of(inv)
    (file,) = cache.iterdir()
    generator = torch.Generator().manual_seed(0)
    nonsense = {name: torch.randn(t.shape, generator=generator) for name, t in load(file.read_bytes()).items()}
    file.write_bytes(save(nonsense, described(0.99)))
    found = inv.invert(inv.capture(truth))
    assert exact(found, truth)
    assert found[0].rank.max() > 20


# ---- a second look at doubtful tokens


def test_a_second_look_adds_the_prior_of_the_row_before():
    """Against the formula: log p(state | token) + log(0.7 p(token | prefix) + 0.3 / V)."""
    inv = inverter("llama")
    lens = choose_lens(inv.decoder, inv.vocabulary, "linear")
    hidden = inv.decoder.capture(torch.tensor(texts(12, 12, 12)))
    proxies = lens.proxies(hidden)
    text, position = torch.tensor([0, 2, 1]), torch.tensor([1, 11, 4])
    ids, leads = look_again(inv.decoder, lens, hidden, proxies, text, position)
    for b, t, token, lead in zip(text, position, ids, leads, strict=True):
        likelihood = lens.scores(proxies[b, t][None], torch.tensor([False]))[0]
        prior = inv.decoder.log_probs(hidden[b, t - 1]).exp()
        best = (likelihood + (0.7 * prior + 0.3 / VOCAB).log()).topk(2)
        assert token == best.indices[0]
        torch.testing.assert_close(lead, best.values[0] - best.values[1], rtol=1e-3, atol=1e-3)


def test_the_first_token_has_no_prior_and_sure_ones_need_none():
    error = torch.tensor([[0.9, 0.001, 0.5], [0.9, 0.02, float("nan")]])
    text, position = doubtful(error)
    assert list(zip(text.tolist(), position.tolist(), strict=True)) == [(0, 2), (1, 1)]


def test_a_second_look_puts_wrong_drafts_right_on_real_text():
    inv = Inverter.from_pretrained("bundled", device="cpu")
    lens = choose_lens(inv.decoder, inv.vocabulary, "linear")
    assert lens.repair.second_look > 0, "measured to help"
    ids = torch.tensor([inv.encode(" ".join(demo.sentences()))[:600]])
    hidden = inv.decoder.capture(ids)
    proxies = lens.proxies(hidden)
    drafted, leads = lens.best(proxies)
    rows = doubtful(lens.repair.error(leads))
    looked = drafted.clone()
    looked[rows], _ = look_again(inv.decoder, lens, hidden, proxies, *rows)
    assert 0 < (looked != ids).sum() < (drafted != ids).sum()


def test_states_of_inner_layers_get_no_second_look():
    inv = Inverter(build("gpt2"), layer=1)
    assert choose_lens(inv.decoder, inv.vocabulary, "linear").repair.second_look == 0
