"""The learned lens: better than the linear one, blind to later rows, and only ever a proposer."""

from __future__ import annotations

import time

import pytest
import torch

from invert_fast import Inverter
from invert_fast.lens import Fit, LearnedLens, choose_lens, learned, store
from invert_fast.lens.precision import fast_dtype
from invert_fast.strategies import Speculative
from invert_fast.types import InputError

from ..families import VOCAB, Tokenizer, build, embedding_table, exact, make, texts
from ..limits import close
from .fits import SHORT, fitted, fitted_once
from .lenses import exact_proxies, roundings, same_drafts

pytestmark = pytest.mark.numeric


def test_before_training_it_is_the_linear_lens():
    inv = Inverter(make("gpt2"))
    linear = store.linear_lens(inv.decoder, inv.vocabulary)
    untrained = LearnedLens(linear, 64, 2)
    states = inv.decoder.capture(torch.tensor(texts(20, 20)))
    wanted, scale = exact_proxies(linear, states), exact_proxies(linear, states, sized=True)
    for lens in (untrained, linear):
        close(lens.proxies(states), wanted, scale=scale, terms=roundings(linear))
    same_drafts(linear, states, untrained.draft(states), linear.draft(states))


def test_training_makes_it_better_on_texts_it_has_not_seen(small_fits):
    inv, report, lens = fitted("llama", fit=Fit(width=64, layers=1, steps=200))
    ids = torch.tensor(texts(*[14] * 128, seed=77))
    states = inv.decoder.capture(ids)
    linear = (store.linear_lens(inv.decoder, inv.vocabulary).draft(states) == ids).float().mean().item()
    assert (lens.draft(states) == ids).float().mean().item() > linear + 0.01
    assert report.top1["random"] > report.linear["random"]
    assert report.top16["random"] >= report.top1["random"]
    assert lens.accuracy > lens.linear_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["embeddings", "block:0", "block:1"])
def test_any_layer_has_a_lens_of_its_own(small_fits, layer):
    inv, _, lens = fitted("gpt2", layer)
    assert isinstance(lens, LearnedLens)
    truth = texts(12, 7, 1)
    assert exact(inv.invert(inv.capture(truth), Speculative(lens="learned", max_candidates=None)), truth)
    with pytest.raises(InputError, match="no learned lens"):
        Inverter(make("gpt2")).invert(Inverter(make("gpt2")).capture(truth), Speculative(lens="learned"))


def test_a_row_sees_no_row_after_it(small_fits, monkeypatch):
    """Otherwise a lens would learn to peek, and chunks of a stream could not be drafted."""
    inv, _, lens = fitted_once(small_fits)
    monkeypatch.setattr(learned, "fast_dtype", lambda _: torch.float32)
    states = inv.decoder.capture(torch.tensor(texts(20, 20)))
    changed = states.clone()
    changed[:, 12:] = torch.randn(changed[:, 12:].shape, generator=torch.Generator().manual_seed(1))
    scale = exact_proxies(lens.linear, states, sized=True)[:, :12] + lens.proxies(states)[:, :12].abs()
    terms = roundings(lens.linear) + 16 * lens.width  # and the products of a layer, which only correct that
    close(lens.proxies(changed)[:, :12], lens.proxies(states)[:, :12], scale=scale, terms=terms)
    assert not torch.allclose(lens.proxies(changed)[:, 12], lens.proxies(states)[:, 12])


def test_texts_longer_than_any_in_training_are_drafted_as_well(small_fits):
    inv, _, lens = fitted_once(small_fits, "gpt2")
    ids = torch.tensor(texts(*[100] * 8, seed=3))
    right = lens.draft(inv.decoder.capture(ids)) == ids
    assert right[:, 50:].float().mean() > 0.8 * right[:, 1:16].float().mean()


def test_only_candidates_are_drafted_and_scored(small_fits):
    model = build("gpt2")
    embedding_table(model)[20:40] = embedding_table(model)[:20]
    inv = Inverter(model, Tokenizer(VOCAB - 50))
    inv.fit("learned", SHORT)
    lens = choose_lens(inv.decoder, inv.vocabulary, "learned")
    states = 10 * torch.randn(4, 30, inv.decoder.width, generator=torch.Generator().manual_seed(0))
    assert inv.vocabulary.allowed[lens.draft(states)].all()
    scores = lens.scores(lens.proxies(states)[:, 1], torch.zeros(4).bool())
    assert (scores[:, ~inv.vocabulary.allowed] < scores[:, inv.vocabulary.allowed].min() - 1e20).all()


def test_where_bf16_is_faster_the_transformer_runs_in_it_and_the_linear_part_does_not(small_fits, monkeypatch):
    inv, _, lens = fitted_once(small_fits)
    states = inv.decoder.capture(torch.tensor(texts(20, 20)))
    monkeypatch.setattr(learned, "fast_dtype", lambda _: torch.float32)  # whatever is faster here
    drafted, proxies = lens.draft(states), lens.proxies(states)
    monkeypatch.setattr(learned, "fast_dtype", lambda _: torch.bfloat16)
    rounded = lens.proxies(states)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, proxies)
    assert (lens.draft(states) == drafted).float().mean() > 0.9
    report = Inverter(make("llama")).fit("learned", Fit(width=32, layers=1, steps=40, seed=5))
    assert report.top1["random"] > 0.9 * report.linear["random"]


def test_the_precision_of_a_lens_does_not_hang_on_a_clock(monkeypatch):
    """A busy machine slows down any product: were they timed, one fit in many would end with another lens."""
    product, found = torch.mm, []

    for slow in (torch.float32, torch.bfloat16):

        def timed(a, b, slow=slow):
            if a.dtype == slow:
                time.sleep(0.002)
            return product(a[:1], b[:, :1])

        monkeypatch.setattr(torch, "mm", timed)
        found.append(fast_dtype.__wrapped__(torch.device("cpu")))
    assert found[0] == found[1] == fast_dtype(torch.device("cpu"))


def test_bf16_is_for_processors_with_tiles_that_are_in_use(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for cap, wanted in (("", torch.bfloat16), ("avx512_core_amx", torch.bfloat16), ("AVX2", torch.float32)):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
        assert fast_dtype.__wrapped__(torch.device("cpu")) == wanted
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert fast_dtype.__wrapped__(torch.device("cpu")) == torch.float32
