"""The fit of a learned lens: the same however it was cut, in time, and from whatever texts."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from invert_fast import Inverter
from invert_fast.lens import Fit, choose_lens, store, trainer
from invert_fast.lens import texts as training_texts
from invert_fast.types import InputError

from ..families import build, exact, make, texts
from .fits import SHORT, fitted, fitted_once

pytestmark = [pytest.mark.numeric, pytest.mark.slow]


def test_equal_fits_give_equal_lenses_and_other_seeds_others(small_fits):
    tensors = []
    for seed in (0, 0, 1):
        _, report, _ = fitted("gpt2", fit=Fit(width=32, layers=1, steps=20, seed=seed))
        tensors.append(load_file(report.path))
        torch.manual_seed(1234)
    assert all(torch.equal(t, tensors[1][name]) for name, t in tensors[0].items())
    assert not torch.equal(tensors[0]["lens.project"], tensors[2]["lens.project"])


class CutError(Exception):
    """A kill in the middle of a fit."""


@pytest.mark.parametrize("at", [7, 35])
def test_an_interrupted_fit_goes_on_to_the_same_lens(small_fits, monkeypatch, at, caplog):
    _, report, _ = fitted_once(small_fits, "gpt2")
    whole = load_file(report.path)
    Path(report.path).unlink()
    step = trainer.Trainer._step

    def cut(self):
        if self.step == at:
            raise CutError
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", cut)
        patch.setattr(trainer, "_CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(CutError):
            fitted("gpt2")
    assert not Path(report.path).exists()
    with caplog.at_level(logging.INFO, "invert_fast"):
        _, again, _ = fitted("gpt2")
    assert f"from step {at}" in caplog.text
    assert again.steps == report.steps
    assert all(torch.equal(t, whole[name]) for name, t in load_file(again.path).items())
    assert not [f for f in small_fits.iterdir() if f.name.startswith("fit-")], "the checkpoint is gone"


def test_a_fit_is_not_gone_on_with_in_another_precision(small_fits, monkeypatch, caplog):
    """A cache folder may be shared by machines that compute in different ones."""
    _, report, _ = fitted("gpt2")
    whole = Path(report.path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "forget", lambda self: None)
        patch.setattr(trainer, "_CHECKPOINT_SECONDS", 0.0)
        patch.setattr(trainer, "fast_dtype", lambda _: "another")
        fitted("gpt2")
    with caplog.at_level(logging.INFO, "invert_fast"):
        _, again, _ = fitted("gpt2")
    assert "going on with the fit" not in caplog.text
    assert Path(again.path).read_bytes() == whole


@pytest.mark.parametrize("damage", ["empty", "cut", "other tensors"])
def test_a_damaged_checkpoint_is_said_and_the_fit_starts_anew(small_fits, monkeypatch, caplog, damage):
    _, report, _ = fitted_once(small_fits, "gpt2")
    whole = load_file(report.path)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "forget", lambda self: None)
        patch.setattr(trainer, "_CHECKPOINT_SECONDS", 0.0)
        fitted("gpt2")
    (checkpoint,) = [f for f in small_fits.iterdir() if f.name.startswith("fit-")]
    data = checkpoint.read_bytes()
    other = save({"lens.project": torch.zeros(3)}, {"about": "{}"})
    checkpoint.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "other tensors": other}[damage])
    with caplog.at_level(logging.WARNING, "invert_fast"):
        _, again, _ = fitted("gpt2")
    assert "fitting from the start" in caplog.text
    assert all(torch.equal(t, whole[name]) for name, t in load_file(again.path).items())


def test_a_fit_stops_early_when_held_out_texts_are_right(small_fits):
    """States that are embeddings are read without a mistake from the start."""
    _, report, _ = fitted("gpt2", "embeddings", Fit(width=32, layers=1, steps=1000))
    assert report.steps < 200
    assert report.top1["written"] > 0.95


def test_minutes_end_a_fit(small_fits):
    start = time.perf_counter()
    _, report, _ = fitted("gpt2", fit=Fit(width=32, layers=1, steps=100_000, minutes=0.03))
    assert 0 < report.steps < 10_000
    assert time.perf_counter() - start < 60


def test_noisy_states_are_learned(small_fits):
    """Trained with noise, a lens reads noisy states better than one that never saw any."""
    inv, _, clean = fitted_once(small_fits, "gpt2")
    _, _, noisy = fitted("gpt2", fit=replace(SHORT, noise=0.5))
    ids = torch.tensor(texts(*[14] * 64, seed=5))
    states = inv.decoder.capture(ids)
    rms = states.square().mean(-1, keepdim=True).sqrt()
    states = states + 0.5 * rms * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    right = [(lens.draft(states) == ids).float().mean().item() for lens in (clean, noisy)]
    assert right[1] > right[0] + 0.02


def test_texts_that_are_given_are_learned(small_fits):
    """A fixed phrase over and over: a lens that saw it reads it better than the linear one."""
    inv = Inverter(make("llama"))
    phrase = texts(60, seed=9)[0]
    report = inv.fit("learned", Fit(width=32, layers=1, steps=100), text=[phrase * 3, phrase])
    states = inv.decoder.capture(torch.tensor([phrase]))
    lens = choose_lens(inv.decoder, inv.vocabulary, "learned")
    before = store.linear_lens(inv.decoder, inv.vocabulary).draft(states)
    assert (lens.draft(states) == torch.tensor([phrase])).sum() > (before == torch.tensor([phrase])).sum()
    assert report.steps == 100


def test_a_vocabulary_too_large_to_score_is_sampled(small_fits, monkeypatch):
    monkeypatch.setattr(training_texts, "_SCORED", 64)
    _, report, _ = fitted("llama", fit=Fit(width=64, layers=1, steps=150))
    assert report.top1["random"] > report.linear["random"]


def test_a_fit_leaves_the_model_and_the_global_generator_alone(small_fits):
    model = build("gpt2")
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    Inverter(model).fit("learned", Fit(width=32, layers=1, steps=5))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_of_one_position_keeps_the_linear_lens(small_fits):
    model = build("gpt2")
    model.config.max_position_embeddings = 1
    inv, truth = Inverter(model), texts(1, 1, 1)
    inv.fit("learned", SHORT)
    assert exact(inv.invert(inv.capture(truth)), truth)


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 100},
        {"width": 0},
        {"layers": 0},
        {"steps": 0},
        {"minutes": 0},
        {"noise": -1},
        {"states_dtype": "int8"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match="expected"):
        Fit(**settings)


@pytest.mark.parametrize(("accuracy", "size"), [(0.95, (128, 1)), (0.5, (192, 2))])
def test_where_the_linear_lens_leaves_more_to_correct_the_lens_is_larger(small_fits, monkeypatch, accuracy, size):
    inv = Inverter(make("gpt2"))
    linear = store.linear_lens(inv.decoder, inv.vocabulary)
    linear.accuracy = accuracy
    monkeypatch.setattr(store, "linear_lens", lambda *_: linear)
    inv.fit("learned", Fit(steps=1))
    lens = choose_lens(inv.decoder, inv.vocabulary, "learned")
    assert (lens.width, lens.layers) == size  # type: ignore[union-attr]
    inv.fit("learned", Fit(steps=1, width=64))
    lens = choose_lens(inv.decoder, inv.vocabulary, "learned")
    assert (lens.width, lens.layers) == (64, size[1])  # type: ignore[union-attr]
