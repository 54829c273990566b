"""The linear lens is kept, read again, and refitted where its file is damaged."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load, save

from invert_fast import Inverter
from invert_fast.lens import linear_fit
from invert_fast.lens.linear_fit import fit_linear

from ..families import Tokenizer, exact, inverter, make, texts
from .lenses import captured, lens_of

pytestmark = [pytest.mark.numeric, pytest.mark.slow, pytest.mark.usefixtures("small_fits")]


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


@pytest.mark.parametrize("layer", [-1, 1, 0])
def test_what_lists_of_a_large_vocabulary_are_found_by_is_stored(cache, monkeypatch, layer):
    monkeypatch.setattr(linear_fit, "MANY_TOKENS", 1)
    inv = inverter("gpt2", layer)
    _, states = captured(inv, 30, 30)
    fitted = lens_of(inv)
    monkeypatch.setattr(linear_fit, "fit_linear", lambda *_: pytest.fail("fitted again"))
    stored = lens_of(Inverter(make("gpt2"), layer=layer))
    assert fitted.metric is not None
    assert torch.equal(stored.metric, fitted.metric)
    assert stored.repair == fitted.repair
    for name, part in fitted.parts.items():
        assert torch.equal(part.bias, stored.parts[name].bias)
    for one, other in zip(stored.lists(stored.proxies(states)), fitted.lists(fitted.proxies(states)), strict=True):
        assert torch.equal(one, other)


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
    return {
        "about": json.dumps({"accuracy": accuracy, "repair": {"first_block": 4, **repair}, "used": 0, "rank": None})
    }


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
