"""Tolerances are measured: noise below, wrong tokens above, each position class by itself, the same every time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from invert_fast import Inverter, States
from invert_fast.engine.calibrate import calibrate
from invert_fast.engine.tolerances import Tolerances
from invert_fast.storage import cache as cache_module

from ..families import BLOCKS, FAMILIES, WIDTH, Tokenizer, build, inverter, make, texts


def measured(inv: Inverter, dtype: str = "float32", compute_dtype: str = "float32") -> Tolerances:
    return calibrate(inv.decoder, inv.vocabulary, dtype, compute_dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [-1, f"block:{BLOCKS - 1}", "block:0", "embeddings"])
def test_noise_lies_below_tolerance_and_tolerance_below_wrong_tokens(family, layer):
    inv = inverter(family, layer)
    for dtype in ("float32", "float16", "bfloat16"):
        found = measured(inv, dtype)
        rows = zip(*(found.noise, found.tolerance, found.wrong, found.slope, found.typical, found.decades), strict=True)
        for noise, tolerance, wrong, slope, typical, decades in rows:
            assert 0 < typical < noise <= tolerance < wrong
            assert slope > 0
            assert decades == pytest.approx(math.log10(wrong / noise))
            assert decades > (3 if dtype == "float32" else 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_bounds_true_tokens_and_slope_bounds_wrong_ones(family):
    """On texts that calibration has not seen."""
    inv, ids = inverter(family), torch.tensor(texts(*[20] * 8, seed=7))
    found, own = measured(inv, "bfloat16"), inv.decoder.capture(ids)
    stored = own.to(torch.bfloat16).float()
    residual = (own - stored).norm(dim=-1) / stored.norm(dim=-1)
    assert residual[:, 0].max() < found.noise[0]
    assert residual[:, 1:].max() < found.noise[1]
    for position in (0, 9):
        token, others = ids[0, position], torch.arange(inv.vocabulary.size)
        alone = torch.cat([ids[0, :position].expand(len(others), -1), others[:, None]], 1)
        away = (inv.decoder.capture(alone)[:, -1] - own[0, position]).norm(dim=-1) / own[0, position].norm()
        bound = float(
            found.at(torch.tensor([position])).bound(inv.vocabulary.separation_of(token[None]), away.new_tensor([0.0]))
        )
        assert away[others != token].min() >= bound


def test_lower_precision_has_more_noise():
    inv = inverter("llama")
    full, half, brain, computed = (
        measured(inv, *dtypes).noise[1] for dtypes in (["float32"], ["float16"], ["bfloat16"], ["bfloat16", "bfloat16"])
    )
    assert full < half / 10 < brain / 10
    assert brain < computed


def test_the_first_position_has_figures_of_its_own():
    found = Tolerances((1.0, 2.0), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0))
    at = found.at(torch.tensor([[0, 1], [9, 0]]))
    assert at.noise.tolist() == [[1, 2], [2, 1]]
    assert at.tolerance.tolist() == [[3, 4], [4, 3]]
    assert at.slope.tolist() == [[7, 8], [8, 7]]
    assert "first" in found.describe()
    assert "rest" in found.describe()


def test_calibrating_twice_gives_the_same(cache):
    inv = Inverter(build("qwen2"))
    before = torch.get_rng_state()
    first = measured(inv)
    for file in cache.iterdir():
        file.unlink()
    torch.manual_seed(123)
    assert measured(Inverter(build("qwen2"))) == first
    torch.set_rng_state(before)
    measured(inv, "float16")
    assert torch.equal(torch.get_rng_state(), before), "the global random generator moved"


def rewritten(entry: Path, **changes: object) -> None:
    """The stored figures with others in their place; the metric stays."""
    with safe_open(entry, framework="pt") as file:
        figures = json.loads(file.metadata()["figures"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for key in [key for key in changes if key in tensors]:
        tensors[key] = changes.pop(key)
    entry.write_bytes(save(tensors, metadata={"figures": json.dumps(figures | changes)}))


def test_a_stored_result_is_used_and_only_for_what_it_was_measured_on(cache, monkeypatch):
    measured(Inverter(make("gpt2")))
    (entry,) = cache.iterdir()
    rewritten(entry, noise=[1e-3, 2e-3])
    assert measured(Inverter(make("gpt2"))).noise == (1e-3, 2e-3)
    others = [
        (Inverter(make("gpt2")), "float16"),
        (Inverter(make("gpt2"), layer="block:0"), "float32"),
        (Inverter(make("gpt2", 1)), "float32"),
        (Inverter(make("gpt2"), Tokenizer(200)), "float32"),
    ]
    for inv, dtype in others:
        assert measured(inv, dtype).noise != (1e-3, 2e-3)
    assert len(list(cache.iterdir())) == 1 + len(others)


DAMAGES = {
    "zero": {"noise": [0, 1]},
    "negative": {"noise": [-1, 1]},
    "nan": {"noise": [math.nan, 1]},
    "inf": {"typical": [math.inf, 1]},
    "three": {"noise": [1, 2, 3]},
    "text": {"noise": ["a", "b"]},
    "nested": {"noise": [[1], [2]]},
    "surprise": {"surprise": [1, 2]},
    "power": {"power": [0, 7]},
    "vast": {"noise": [10**400, 1]},
    "narrow": {"directions": torch.zeros(2, 3, 16)},
    "held": {"held": torch.ones(2, 16)},
    "endless": {"directions": torch.full((2, WIDTH, 16), math.inf)},
}


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\x00", "cut", *DAMAGES], ids=repr)
def test_a_damaged_entry_is_measured_again_and_said_so(cache, damage, caplog):
    inv = Inverter(make("gpt2"))
    expected = measured(inv, "bfloat16")
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    if isinstance(damage, bytes):
        entry.write_bytes(damage)
    elif damage == "cut":
        entry.write_bytes(whole[:-3])
    else:
        rewritten(entry, **DAMAGES[damage])
    assert entry.read_bytes() != whole
    found = measured(inv, "bfloat16")
    assert "measuring them again" in caplog.text
    assert found == expected
    assert torch.equal(found.metric.directions, expected.metric.directions)
    assert entry.read_bytes() == whole, "mended"


def test_without_a_cache_folder_everything_works(tmp_path, monkeypatch):
    inv, truth = Inverter(make("gemma")), texts(5)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INVERT_FAST_CACHE", "off")
    assert cache_module.folder() is None
    assert inv.invert(inv.capture(truth))[0].certified
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path / "file" / "cache"))  # cannot be made
    assert inv.invert(inv.capture(truth))[0].certified


def test_one_text_of_one_token_and_a_vocabulary_of_one_class():
    model = build("llama", vocab=8)
    model.get_input_embeddings().weight[:] = model.get_input_embeddings().weight[3].clone()
    inv = Inverter(model)
    (found,) = inv.invert(inv.capture([[5, 2]]), "exhaustive")
    assert found.alternatives == {0: list(range(1, 8)), 1: list(range(1, 8))}
    assert found.status.tolist() == [2, 2]


def test_calibration_is_of_the_precision_the_states_name():
    inv = inverter("llama")
    hidden = inv.capture(texts(6))[0].hidden
    for dtype in ("float16", "bfloat16"):
        low = hidden.to(getattr(torch, dtype))
        assert inv.invert(States(low, -1, compute_dtype="float32"))[0].certified
        assert inv.invert(States(low.float(), -1))[0].certified, "its numbers show what it was"
        exact = inv.calibrate("float32", "float32")
        assert not inv.invert(low.float(), tolerances=exact)[0].certified, "judged as if it were float32"
        assert inv.invert(low.float(), states_dtype=dtype)[0].certified
