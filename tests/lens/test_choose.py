"""Which lens is used, where learned ones are kept, and what a bad one can do."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from invert_fast import Inverter
from invert_fast.lens import Fit, choose_lens, store
from invert_fast.strategies import Speculative
from invert_fast.types import InputError

from ..families import exact, make, texts
from .fits import SHORT, fitted_once

pytestmark = [pytest.mark.numeric, pytest.mark.slow]
FEW = Fit(width=32, layers=1, steps=5)


def test_auto_takes_the_learned_lens_when_it_is_better(small_fits):
    inv = Inverter(make("llama"))
    assert choose_lens(inv.decoder, inv.vocabulary).kind == "linear"
    inv.fit("learned", Fit(width=64, layers=1, steps=150))
    assert choose_lens(inv.decoder, inv.vocabulary).kind == "learned"
    assert choose_lens(inv.decoder, inv.vocabulary, "linear").kind == "linear"
    truth = texts(20, 3, 9)
    assert exact(inv.invert(inv.capture(truth)), truth)


def test_auto_keeps_the_linear_lens_when_the_learned_one_gained_nothing(small_fits):
    inv, _, lens = fitted_once(small_fits, "gpt2", fit=FEW)
    path = small_fits / store.learned_name(inv.decoder, "any")
    lens.accuracy = lens.linear_accuracy
    path.write_bytes(store.write_learned(lens, inv.decoder, {}))
    other = Inverter(make("gpt2"))
    assert choose_lens(other.decoder, other.vocabulary).kind == "linear"
    assert choose_lens(other.decoder, other.vocabulary, "learned").kind == "learned"


def test_an_unknown_lens_is_refused():
    inv = Inverter(make("gpt2"))
    with pytest.raises(InputError, match="expected one of auto, linear, learned"):
        choose_lens(inv.decoder, inv.vocabulary, "psychic")
    with pytest.raises(InputError, match="expected auto, learned or linear"):
        inv.fit("psychic")


# ---- files


def test_a_file_that_cannot_be_written_is_refused_before_the_training(small_fits, tmp_path):
    inv = Inverter(make("gpt2"))
    with pytest.raises(InputError, match="cannot be written"):
        inv.fit("learned", SHORT, output=tmp_path / "no" / "such" / "folder" / "lens.safetensors")
    assert not list(small_fits.iterdir())


def test_a_lens_for_one_precision_is_kept_beside_the_one_for_any(small_fits):
    inv, _, _ = fitted_once(small_fits, "gpt2", fit=FEW)
    inv.fit("learned", Fit(width=64, layers=1, steps=10, states_dtype="bfloat16"))
    widths = {
        dtype: choose_lens(inv.decoder, inv.vocabulary, "learned", dtype).width  # type: ignore[union-attr]
        for dtype in ("any", "float32", "float16", "bfloat16")
    }
    assert widths == {"any": 32, "float32": 32, "float16": 32, "bfloat16": 64}


def test_without_a_cache_folder_the_lens_goes_to_the_named_file_only(monkeypatch, tmp_path, small_fits):
    monkeypatch.setenv("INVERT_FAST_CACHE", "off")
    inv = Inverter(make("gpt2"))
    report = inv.fit("learned", Fit(width=32, layers=1, steps=5), output=tmp_path / "lens.safetensors")
    assert report.path is None
    assert store.read_learned(tmp_path / "lens.safetensors", inv.decoder, inv.vocabulary) is not None


DAMAGES = ["empty", "text", "cut", "no metadata", "another model's", "huge", "a part is missing", "other shapes", "NaN"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_lens_is_said_and_inversion_goes_on_without_it(small_fits, caplog, damage):
    inv, report, _ = fitted_once(small_fits, "gpt2", fit=FEW)
    path, truth = Path(report.path or ""), texts(12, 5)
    whole = path.read_bytes()
    tensors = load(whole)
    about = {"accuracy": 0.99, "linear_accuracy": 0.5, "repair": {}, "width": 32, "layers": 1}
    about |= {"model": inv.decoder.fingerprint(), "layer": inv.decoder.layer.name}
    if damage == "no metadata":
        path.write_bytes(save(tensors))
    elif damage == "another model's":
        path.write_bytes(save(tensors, {"about": json.dumps({**about, "model": "gpt2:0123"})}))
    elif damage == "huge":
        path.write_bytes(save(tensors, {"about": json.dumps({**about, "width": 10**9})}))
    elif damage == "a part is missing":
        del tensors["lens.enter.weight"]
        path.write_bytes(save(tensors, {"about": json.dumps(about)}))
    elif damage == "other shapes":
        cut = {name: t[:3].clone() if t.dim() else t for name, t in tensors.items()}
        path.write_bytes(save(cut, {"about": json.dumps(about)}))
    elif damage == "NaN":
        path.write_bytes(save({**tensors, "lens.log_scale": torch.tensor(float("nan"))}, {"about": json.dumps(about)}))
    else:
        path.write_bytes({"empty": b"", "text": b"not a lens", "cut": whole[: len(whole) // 2]}[damage])
    other = Inverter(make("gpt2"))
    with caplog.at_level(logging.WARNING, "invert_fast"):
        assert exact(other.invert(other.capture(truth)), truth)
    assert (str(path) in caplog.text) == (damage != "another model's")


def test_a_lens_of_nonsense_costs_time_and_nothing_else(small_fits):
    inv, report, _ = fitted_once(small_fits, "gpt2", fit=FEW)
    path, truth = Path(report.path or ""), texts(12, 1, 5)
    generator = torch.Generator().manual_seed(0)
    nonsense = {name: torch.randn(t.shape, generator=generator) for name, t in load(path.read_bytes()).items()}
    about = {"accuracy": 0.99, "linear_accuracy": 0.5, "repair": {"row": 1.0}, "width": 32, "layers": 1}
    about |= {"model": inv.decoder.fingerprint(), "layer": inv.decoder.layer.name}
    path.write_bytes(save(nonsense, {"about": json.dumps(about)}))
    other = Inverter(make("gpt2"))
    found = other.invert(other.capture(truth))
    assert choose_lens(other.decoder, other.vocabulary).kind == "learned"
    assert exact(found, truth)
    assert found[0].rank.max() > 20


# ---- the one that ships


def test_the_bundled_model_has_a_learned_lens_from_the_start(monkeypatch, tmp_path):
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path))
    assert store.SHIPPED.stat().st_size <= 4_000_000
    inv = Inverter.from_pretrained("bundled", device="cpu")
    states = inv.capture(["The password is hunter2.", "Meet me at a quarter past nine, behind the old station."])
    found = inv.invert(states, Speculative(lens="learned"))
    assert all(r.certified for r in found)
    assert choose_lens(inv.decoder, inv.vocabulary).kind == "learned"
    lenses = [f.name for f in tmp_path.iterdir() if f.name.startswith(("linear", "learned"))]
    assert lenses == [], "nothing was fitted"
