"""The learned lens of a large vocabulary, on small ones: it starts as the linear one, learns how much of the prior to
take, and is kept, read back and gone on with as others are."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from tqdm import tqdm

from invert_fast import InputError, Inverter, Speculative
from invert_fast.lens import Fit, LearnedLens, choose_lens, fit_large, gathered, mixture, trainer
from invert_fast.lens.deepen import held_out
from invert_fast.lens.gathered import GatheredTexts
from invert_fast.lens.mixture import Mixture
from invert_fast.lens.prior import draft_lists
from invert_fast.lens.store import learned_lens, linear_lens

from ..families import VOCAB, build, exact, texts

SOON = Fit(minutes=1e-4)
LARGE = ("lens.fit", "lens.linear_fit", "strategies.candidates", "strategies.lens_order")


@pytest.fixture(autouse=True)
def large(monkeypatch, tmp_path):
    """Every vocabulary is large, and a fit takes a second or two."""
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("INVERT_FAST_SHARPEN", "on")
    for room in LARGE:
        monkeypatch.setattr(import_module(f"invert_fast.{room}"), "MANY_TOKENS", 1)
    begin = Mixture.__init__

    def little(self, decoder, vocabulary, seed, noise, bar, more=None, *rest):
        begin(self, decoder, vocabulary, seed, noise, bar, more and 4096, *rest)

    for name, value in (("_A_NUMBER", 8), ("_LEAST", 4096), ("_KEPT", 4), ("_SINGLES", 300), ("_LONG", 64)):
        monkeypatch.setattr(mixture, name, value)
    monkeypatch.setattr(Mixture, "__init__", little)
    monkeypatch.setattr(gathered, "_TOKENS", 512)
    monkeypatch.setattr(gathered, "_RANDOM", 64)


def data_of(inverter: Inverter, fit: Fit | None = None) -> GatheredTexts:
    """Some texts that were gathered."""
    decoder, vocabulary = inverter.decoder, inverter.vocabulary
    test = held_out(decoder, vocabulary, 0, tqdm(disable=True))
    data = GatheredTexts(decoder, vocabulary, fit or Fit(), linear_lens(decoder, vocabulary), test)
    ids = torch.tensor(texts(*[data.length] * 12, seed=5))
    data.add(ids, decoder.states(ids))
    return data


def untrained(inverter: Inverter) -> LearnedLens:
    return fit_large._begun(
        inverter.decoder, linear_lens(inverter.decoder, inverter.vocabulary), Fit(width=32, layers=1)
    )


@pytest.mark.parametrize("family", ["gemma", "llama"])  # the head is the embedding matrix, and is not
def test_the_loss_is_that_of_the_whole_formula(family):
    inv = Inverter(build(family, blocks=2))
    data, lens = data_of(inv), untrained(inv)
    with torch.no_grad():
        lens.gate.bias.fill_(0.7)
        lens.log_scale.fill_(math.log(0.3))
    ids, states, lists = data._batch(3)
    proxies, weights = lens(states)
    assert torch.equal(weights[:, 0], torch.zeros(len(ids)))
    scores = inv.vocabulary.embedding.scores(proxies[:, 1:].flatten(0, 1), lens.bias())
    prior = inv.decoder.log_probs(states[:, :-1].flatten(0, 1))
    scores = scores + weights[:, 1:].reshape(-1, 1) * prior
    right = ids[:, 1:].flatten()
    among = torch.zeros_like(scores, dtype=torch.bool)
    among[:, torch.cat([right, data._random(3)])] = True
    among.scatter_(1, lists.flatten(0, 1).long().clamp_min(0), True)
    assert not among.all(), "some tokens are left out"
    wanted = F.cross_entropy(scores.masked_fill(~among, float("-inf")), right)
    assert data.loss(lens, 3).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_rivals_are_told_once_and_what_is_no_token_not_at_all():
    inv = Inverter(build("llama", blocks=2))
    data, lens = data_of(inv), untrained(inv)
    (ids, states, lists), *_ = data._parts
    before = data.loss(lens, 0).item()
    more = torch.cat([lists, ids[:, 1:, None].int(), torch.full_like(lists[..., :3], -1)], -1)
    data._parts[0] = ids, states, more  # the right token, which is scored already, and nothing
    assert data.loss(lens, 0).item() == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize(("family", "layer"), [("gemma", -1), ("llama", -1), ("llama", "block:0")])
def test_a_fit_is_kept_chosen_and_exact(family, layer):
    inv = Inverter(build(family, blocks=2), layer=layer)
    report = inv.fit(settings=Fit(width=32, layers=1, steps=40, minutes=0.04))
    lens = choose_lens(inv.decoder, inv.vocabulary, "learned")
    assert isinstance(lens, LearnedLens)
    assert lens.weighs == inv.decoder.layer.near_head
    assert report.top1["held out"] == pytest.approx(lens.accuracy, abs=1e-4)
    assert choose_lens(inv.decoder, inv.vocabulary).kind == ("learned" if report.better else "linear")
    states = inv.decoder.capture(torch.tensor(texts(20, 20)))
    here, there = (draft_lists(inv.decoder, one, states) for one in (lens, learned_lens(inv.decoder, inv.vocabulary)))
    assert torch.equal(here.ids, there.ids)
    assert torch.equal(here.weight, there.weight)
    truth = texts(1, 9, 30)
    found = inv.invert(inv.capture(truth), Speculative(lens="learned", max_candidates=None))
    assert exact(found, truth)


def test_training_pays_on_texts_that_it_has_not_seen(monkeypatch):
    for name, value in (("rate", 4e-3), ("linear_rate", 4e-4)):  # a small model, for a few steps
        monkeypatch.setattr(GatheredTexts, name, value)
    inv = Inverter.from_pretrained("bundled")
    seen, fresh = data_of(inv), data_of(inv)
    for seed, data in ((3, seen), (4, fresh)):
        data._parts.clear()
        texts_of = Mixture(inv.decoder, inv.vocabulary, seed, 0.0, tqdm(disable=True), more=4096)
        ids = texts_of.texts()
        data.add(ids, texts_of.run(ids))
    lens = untrained(inv)
    fit_large._scale(lens, seen)
    with torch.no_grad():
        before = [fresh.loss(lens, step).item() for step in range(4)]
    trainer.Trainer(lens, seen, Fit(width=32, layers=1, steps=80)).run()
    with torch.no_grad():
        after = [fresh.loss(lens, step).item() for step in range(4)]
    assert sum(after) < 0.9 * sum(before)
    weights = lens.eval().weighed_proxies(fresh.held_states)[1]
    assert weights[:, 1:].std() > 0.01, "texts want different weights"


def test_a_fit_that_is_cut_short_goes_on(monkeypatch, caplog):
    inv = Inverter(build("llama", blocks=2))
    fit = Fit(width=32, layers=1, steps=6, minutes=0.15)
    step, seen = trainer.Trainer._step, []

    def stop(self):
        seen.append(self.step)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(trainer.Trainer, "_step", stop)
    monkeypatch.setattr(trainer, "_CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        inv.fit("learned", fit)
    report = inv.fit("learned", fit)
    assert seen == [0, 1, 2, *range(2, 6)]
    assert report.steps == 6


def test_a_moment_is_enough_for_a_lens_that_is_no_worse_used():
    inv = Inverter(build("llama", blocks=2))
    report = inv.fit("learned", SOON)
    assert report.steps >= 1
    truth = texts(12, 5)
    assert exact(inv.invert(inv.capture(truth)), truth)


def test_no_more_states_are_kept_than_there_is_room_for(monkeypatch):
    inv = Inverter(build("llama", blocks=2))
    data = data_of(inv)
    before = data.count
    monkeypatch.setattr(gathered, "_BYTES", 100)
    ids = torch.tensor(texts(*[data.length] * 3))
    data.add(ids, inv.decoder.states(ids))
    assert data.count == before


def test_without_a_cache_a_lens_is_trained_for_its_file_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("INVERT_FAST_CACHE", "off")
    inv = Inverter(build("llama", blocks=2))
    output = tmp_path / "lens.safetensors"
    assert inv.fit("learned", SOON, output=output).path is None
    assert output.stat().st_size > VOCAB
    with pytest.raises(InputError, match="cannot be written"):
        inv.fit("learned", SOON, output=tmp_path / "nowhere" / "lens.safetensors")
