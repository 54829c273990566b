"""A linear lens that is given more texts: better by what it held out, gone on from, never the worse one kept."""

from __future__ import annotations

import pytest
import torch

from invert_fast import InputError, Inverter
from invert_fast.lens import Fit, deepen, fit
from invert_fast.lens.mixture import Mixture
from invert_fast.lens.normal_equations import NormalEquations
from invert_fast.lens.store import linear_lens
from invert_fast.lens.sums_store import read_sums

from ..families import VOCAB, build, texts

SOON = Fit(minutes=0.001)  # one round


@pytest.fixture
def young(monkeypatch, tmp_path) -> Inverter:
    """A model whose linear lens was fitted on very little, so that it has much to gain."""
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("INVERT_FAST_SHARPEN", "on")
    begin = Mixture.__init__

    def little(self, decoder, vocabulary, seed, noise, bar, more=None, *rest):
        begin(self, decoder, vocabulary, seed, noise, bar, more or 700, *rest)
        self.kept_rows, self.singles = 4, 300

    monkeypatch.setattr(Mixture, "__init__", little)
    monkeypatch.setattr(deepen, "_ROUND", 8192)
    return Inverter(build("llama", blocks=2))


def sums_of(inverter: Inverter) -> tuple[NormalEquations, int]:
    found = read_sums(inverter.decoder, inverter.vocabulary, 0)
    assert found is not None
    return found


def test_more_texts_make_it_better_and_are_kept(young):
    before = linear_lens(young.decoder, young.vocabulary)
    sums, used = sums_of(young)
    report = young.fit("linear", SOON)
    assert report.deeper
    assert report.better
    assert report.steps == 1
    assert report.top1["held out"] > report.linear["held out"] + 0.1
    after = linear_lens(young.decoder, young.vocabulary)
    assert after.accuracy == pytest.approx(report.top1["held out"], abs=1e-4)
    assert after.accuracy > before.accuracy
    more, used_now = sums_of(young)
    assert used_now == used == 0, "these are no tokens of use"
    assert more.count > sums.count + 7000


def test_a_second_fit_goes_on_with_other_texts(young):
    young.fit("linear", SOON)
    first, _ = sums_of(young)
    young.fit("linear", SOON)
    second, _ = sums_of(young)
    assert second.count == pytest.approx(2 * first.count, rel=0.2)
    gained = second.sums - first.sums
    assert not torch.allclose(gained / gained.abs().max(), first.sums / first.sums.abs().max(), atol=1e-3)


def test_half_of_it_is_text_of_the_users(young, monkeypatch):
    seen = []
    add = deepen.add_texts
    monkeypatch.setattr(
        deepen,
        "add_texts",
        lambda sums, vocabulary, ids, states: (seen.append(ids), add(sums, vocabulary, ids, states)),
    )
    given = [[i % VOCAB for i in range(7, 7 + 2000)]]
    young.fit("linear", SOON, text=given)
    rows = torch.cat(seen)
    theirs = (rows[:, 1:] - rows[:, :-1]) % VOCAB == 1
    assert (theirs.float().mean(1) > 0.2).float().mean() == pytest.approx(0.5, abs=0.05)


def test_a_lens_that_is_no_better_is_not_kept(young, monkeypatch):
    before = linear_lens(young.decoder, young.vocabulary)
    monkeypatch.setattr(deepen, "measure", lambda *_: None)
    monkeypatch.setattr(deepen, "right", lambda *_: (0.5, 0.9))
    assert not young.fit("linear", SOON).better
    after = linear_lens(young.decoder, young.vocabulary)
    assert torch.equal(before.parts["rest"].gram, after.parts["rest"].gram)


def test_which_fit_it_is_hangs_on_the_vocabulary(young, monkeypatch):
    asked = []
    for name in ("deepen_linear", "fit_learned", "fit_large", "fit_linear_again"):
        monkeypatch.setattr(fit, name, lambda *_, name=name: asked.append(name))
    for many in (fit.MANY_TOKENS, 100):
        monkeypatch.setattr(fit, "MANY_TOKENS", many)
        for lens, settings in (
            ("auto", Fit()),
            ("learned", Fit(minutes=3)),
            ("linear", Fit()),
            ("linear", Fit(minutes=3)),
        ):
            young.fit(lens, settings)
    small, large = asked[:4], asked[4:]
    assert small == ["fit_learned", "fit_learned", "fit_linear_again", "deepen_linear"]
    assert large == ["fit_large", "fit_large", "fit_linear_again", "deepen_linear"]
    with pytest.raises(InputError, match="of the learned lens"):
        young.fit("linear", settings=Fit(steps=3))


@pytest.mark.parametrize("setting", ["off", "good"])
def test_where_there_is_nothing_to_gain_it_says_so(young, monkeypatch, setting):
    linear_lens(young.decoder, young.vocabulary)
    if setting == "off":
        monkeypatch.setenv("INVERT_FAST_SHARPEN", "off")
    else:
        monkeypatch.setattr("invert_fast.lens.sums_store._GOOD", 0.0)
    with pytest.raises(InputError, match="nothing"):
        young.fit("linear", SOON)


def test_it_needs_a_cache(young, monkeypatch):
    monkeypatch.setenv("INVERT_FAST_CACHE", "off")
    with pytest.raises(InputError, match="INVERT_FAST_CACHE"):
        young.fit("linear", SOON, text=texts(60))
