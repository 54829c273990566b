"""The learned lens: better than the linear one, the same lens however its fit was cut, and only ever a proposer."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save

from invert_fast import Inverter
from invert_fast.lens import Fit, LearnedLens, choose_lens, learned, linear_fit, store, trainer
from invert_fast.lens import texts as training_texts
from invert_fast.ops import draft_attention, prefix_attention
from invert_fast.strategies import Speculative
from invert_fast.types import InputError

from ..families import VOCAB, Tokenizer, build, embedding_table, exact, make, texts

SHORT = Fit(width=32, layers=1, steps=60)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, and fits small enough for a test."""
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(training_texts, "_POOL", 96)
    monkeypatch.setattr(training_texts, "_HELD", 32)
    monkeypatch.setattr(training_texts, "_LENGTH", 16)
    monkeypatch.setattr(training_texts, "_TOKENS", 512)
    monkeypatch.setattr(trainer, "_LOOK", 20)
    monkeypatch.setattr(training_texts, "_LONG_POOL", 4)
    monkeypatch.setattr(linear_fit, "_LENGTH", 16)
    monkeypatch.setattr(linear_fit, "_TOKENS_LEAST", 4096)
    return tmp_path


def fitted(family: str = "llama", layer: int | str = -1, fit: Fit = SHORT, **options):
    """A decoder of its own, with the lens that was fitted to it."""
    inv = Inverter(make(family), layer=layer)
    report = inv.fit("learned", fit, **options)
    return inv, report, choose_lens(inv.decoder, inv.vocabulary, "learned", fit.states_dtype)


def proxies_of(inv: Inverter, lens) -> torch.Tensor:
    return lens.proxies(inv.decoder.capture(torch.tensor(texts(20, 20, seed=4))))


# ---- what it is


def test_before_training_it_is_the_linear_lens():
    inv = Inverter(make("gpt2"))
    linear = store.linear_lens(inv.decoder, inv.vocabulary)
    untrained = LearnedLens(linear, 64, 2)
    states = inv.decoder.capture(torch.tensor(texts(20, 20)))
    torch.testing.assert_close(untrained.proxies(states), linear.proxies(states), rtol=1e-5, atol=1e-3)
    assert torch.equal(untrained.draft(states), linear.draft(states))


def test_training_makes_it_better_on_texts_it_has_not_seen(cache):
    inv, report, lens = fitted("llama", fit=Fit(width=64, layers=1, steps=200))
    ids = torch.tensor(texts(*[14] * 128, seed=77))
    states = inv.decoder.capture(ids)
    linear = (store.linear_lens(inv.decoder, inv.vocabulary).draft(states) == ids).float().mean().item()
    assert (lens.draft(states) == ids).float().mean().item() > linear + 0.01
    assert report.top1["random"] > report.linear["random"]
    assert report.top16["random"] >= report.top1["random"]
    assert lens.accuracy > lens.linear_accuracy


@pytest.mark.parametrize("layer", ["embeddings", "block:0", "block:1"])
def test_any_layer_has_a_lens_of_its_own(cache, layer):
    inv, _, lens = fitted("gpt2", layer)
    assert isinstance(lens, LearnedLens)
    truth = texts(12, 7, 1)
    assert exact(inv.invert(inv.capture(truth), Speculative(lens="learned", max_candidates=None)), truth)
    with pytest.raises(InputError, match="no learned lens"):
        Inverter(make("gpt2")).invert(Inverter(make("gpt2")).capture(truth), Speculative(lens="learned"))


def test_a_row_sees_no_row_after_it(cache):
    """Otherwise a lens would learn to peek, and chunks of a stream could not be drafted."""
    inv, _, lens = fitted()
    states = inv.decoder.capture(torch.tensor(texts(20, 20)))
    changed = states.clone()
    changed[:, 12:] = torch.randn(changed[:, 12:].shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(lens.proxies(changed)[:, :12], lens.proxies(states)[:, :12])


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 128, 130, 300])
def test_rows_attend_to_the_last_rows_alone(length):
    """Both ways of computing it, forwards and backwards, against a mask."""
    draw = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, 16, generator=draw, requires_grad=True) for _ in range(3))
    at = torch.arange(length)
    visible = (at[None] <= at[:, None]) & (at[None] > at[:, None] - learned.WINDOW)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    found = prefix_attention(q, k, v, scale=0.25, causal=True, window=learned.WINDOW, backend="fused").transpose(1, 2)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape, generator=draw)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if draft_attention.available():
        q, k, v = (t.detach() for t in (q, k, v))
        compiled = draft_attention.attention(q, k, v, None, None, None, scale=0.25, window=learned.WINDOW)
        torch.testing.assert_close(compiled.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)


def test_texts_longer_than_any_in_training_are_drafted_as_well(cache):
    inv, _, lens = fitted("gpt2")
    ids = torch.tensor(texts(*[100] * 8, seed=3))
    right = lens.draft(inv.decoder.capture(ids)) == ids
    assert right[:, 50:].float().mean() > 0.8 * right[:, 1:16].float().mean()


def test_only_candidates_are_drafted_and_scored(cache):
    model = build("gpt2")
    embedding_table(model)[20:40] = embedding_table(model)[:20]
    inv = Inverter(model, Tokenizer(VOCAB - 50))
    inv.fit("learned", SHORT)
    lens = choose_lens(inv.decoder, inv.vocabulary, "learned")
    states = 10 * torch.randn(4, 30, inv.decoder.width, generator=torch.Generator().manual_seed(0))
    assert inv.vocabulary.allowed[lens.draft(states)].all()
    scores = lens.scores(lens.proxies(states)[:, 1], torch.zeros(4).bool())
    assert (scores[:, ~inv.vocabulary.allowed] < scores[:, inv.vocabulary.allowed].min() - 1e20).all()


def test_where_bf16_is_faster_the_transformer_runs_in_it_and_the_linear_part_does_not(cache, monkeypatch):
    inv, _, lens = fitted()
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


def test_a_file_that_cannot_be_written_is_refused_before_the_training(cache, tmp_path):
    inv = Inverter(make("gpt2"))
    with pytest.raises(InputError, match="cannot be written"):
        inv.fit("learned", SHORT, output=tmp_path / "no" / "such" / "folder" / "lens.safetensors")
    assert not list(cache.iterdir())


# ---- the fit


def test_equal_fits_give_equal_lenses_and_other_seeds_others(cache):
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
def test_an_interrupted_fit_goes_on_to_the_same_lens(cache, monkeypatch, at, caplog):
    _, report, _ = fitted("gpt2")
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
    assert not [f for f in cache.iterdir() if f.name.startswith("fit-")], "the checkpoint is gone"


@pytest.mark.parametrize("damage", ["empty", "cut", "other tensors"])
def test_a_damaged_checkpoint_is_said_and_the_fit_starts_anew(cache, monkeypatch, caplog, damage):
    _, report, _ = fitted("gpt2")
    whole = load_file(report.path)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "forget", lambda self: None)
        patch.setattr(trainer, "_CHECKPOINT_SECONDS", 0.0)
        fitted("gpt2")
    (checkpoint,) = [f for f in cache.iterdir() if f.name.startswith("fit-")]
    data = checkpoint.read_bytes()
    other = save({"lens.project": torch.zeros(3)}, {"about": "{}"})
    checkpoint.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "other tensors": other}[damage])
    with caplog.at_level(logging.WARNING, "invert_fast"):
        _, again, _ = fitted("gpt2")
    assert "fitting from the start" in caplog.text
    assert all(torch.equal(t, whole[name]) for name, t in load_file(again.path).items())


def test_a_fit_stops_early_when_held_out_texts_are_right(cache):
    """States that are embeddings are read without a mistake from the start."""
    _, report, _ = fitted("gpt2", "embeddings", Fit(width=32, layers=1, steps=1000))
    assert report.steps < 200
    assert report.top1["written"] > 0.95


def test_minutes_end_a_fit(cache):
    start = time.perf_counter()
    _, report, _ = fitted("gpt2", fit=Fit(width=32, layers=1, steps=100_000, minutes=0.03))
    assert 0 < report.steps < 10_000
    assert time.perf_counter() - start < 60


def test_noisy_states_are_learned(cache):
    """Trained with noise, a lens reads noisy states better than one that never saw any."""
    inv, _, clean = fitted("gpt2", fit=Fit(width=32, layers=1, steps=60))
    _, _, noisy = fitted("gpt2", fit=Fit(width=32, layers=1, steps=60, noise=0.5))
    ids = torch.tensor(texts(*[14] * 64, seed=5))
    states = inv.decoder.capture(ids)
    rms = states.square().mean(-1, keepdim=True).sqrt()
    states = states + 0.5 * rms * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    right = [(lens.draft(states) == ids).float().mean().item() for lens in (clean, noisy)]
    assert right[1] > right[0] + 0.02


def test_a_lens_for_one_precision_is_kept_beside_the_one_for_any(cache):
    inv, _, _ = fitted("gpt2", fit=Fit(width=32, layers=1, steps=10))
    inv.fit("learned", Fit(width=64, layers=1, steps=10, states_dtype="bfloat16"))
    widths = {
        dtype: choose_lens(inv.decoder, inv.vocabulary, "learned", dtype).width  # type: ignore[union-attr]
        for dtype in ("any", "float32", "float16", "bfloat16")
    }
    assert widths == {"any": 32, "float32": 32, "float16": 32, "bfloat16": 64}


def test_texts_that_are_given_are_learned(cache):
    """A fixed phrase over and over: a lens that saw it reads it better than the linear one."""
    inv = Inverter(make("llama"))
    phrase = texts(60, seed=9)[0]
    report = inv.fit("learned", Fit(width=32, layers=1, steps=100), text=[phrase * 3, phrase])
    states = inv.decoder.capture(torch.tensor([phrase]))
    lens = choose_lens(inv.decoder, inv.vocabulary, "learned")
    before = store.linear_lens(inv.decoder, inv.vocabulary).draft(states)
    assert (lens.draft(states) == torch.tensor([phrase])).sum() > (before == torch.tensor([phrase])).sum()
    assert report.steps == 100


def test_a_vocabulary_too_large_to_score_is_sampled(cache, monkeypatch):
    monkeypatch.setattr(training_texts, "_SCORED", 64)
    _, report, _ = fitted("llama", fit=Fit(width=64, layers=1, steps=150))
    assert report.top1["random"] > report.linear["random"]


def test_a_fit_leaves_the_model_and_the_global_generator_alone(cache):
    model = build("gpt2")
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    Inverter(model).fit("learned", Fit(width=32, layers=1, steps=5))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_of_one_position_keeps_the_linear_lens(cache):
    model = build("gpt2")
    model.config.max_position_embeddings = 1
    inv, truth = Inverter(model), texts(1, 1, 1)
    inv.fit("learned", SHORT)
    assert exact(inv.invert(inv.capture(truth)), truth)


def test_without_a_cache_folder_the_lens_goes_to_the_named_file_only(monkeypatch, tmp_path, cache):
    monkeypatch.setenv("INVERT_FAST_CACHE", "off")
    inv = Inverter(make("gpt2"))
    report = inv.fit("learned", Fit(width=32, layers=1, steps=5), output=tmp_path / "lens.safetensors")
    assert report.path is None
    assert store.read_learned(tmp_path / "lens.safetensors", inv.decoder, inv.vocabulary) is not None


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
def test_where_the_linear_lens_leaves_more_to_correct_the_lens_is_larger(cache, monkeypatch, accuracy, size):
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


# ---- which lens is used, and what a bad one can do


def test_auto_takes_the_learned_lens_when_it_is_better(cache):
    inv = Inverter(make("llama"))
    assert choose_lens(inv.decoder, inv.vocabulary).kind == "linear"
    inv.fit("learned", Fit(width=64, layers=1, steps=150))
    assert choose_lens(inv.decoder, inv.vocabulary).kind == "learned"
    assert choose_lens(inv.decoder, inv.vocabulary, "linear").kind == "linear"
    truth = texts(20, 3, 9)
    assert exact(inv.invert(inv.capture(truth)), truth)


def test_auto_keeps_the_linear_lens_when_the_learned_one_gained_nothing(cache):
    inv, _, lens = fitted("gpt2", fit=Fit(width=32, layers=1, steps=1))
    path = cache / store.learned_name(inv.decoder, "any")
    lens.accuracy = lens.linear_accuracy
    path.write_bytes(store.write_learned(lens, inv.decoder, {}))
    other = Inverter(make("gpt2"))
    assert choose_lens(other.decoder, other.vocabulary).kind == "linear"
    assert choose_lens(other.decoder, other.vocabulary, "learned").kind == "learned"


def test_an_unknown_lens_is_refused():
    inv = Inverter(make("gpt2"))
    with pytest.raises(InputError, match="expected one of auto, linear, learned"):
        choose_lens(inv.decoder, inv.vocabulary, "psychic")
    with pytest.raises(InputError, match="expected learned or linear"):
        inv.fit("psychic")


DAMAGES = ["empty", "text", "cut", "no metadata", "another model's", "huge", "a part is missing", "other shapes", "NaN"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_lens_is_said_and_inversion_goes_on_without_it(cache, caplog, damage):
    inv, report, _ = fitted("gpt2", fit=Fit(width=32, layers=1, steps=5))
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


def test_a_lens_of_nonsense_costs_time_and_nothing_else(cache):
    inv, report, _ = fitted("gpt2", fit=Fit(width=32, layers=1, steps=5))
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
    lenses = [f.name for f in tmp_path.iterdir() if f.suffix == ".safetensors"]
    assert lenses == [], "nothing was fitted"


# ---- the command


def run(*args: str, cache: Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "invert_fast.cli.main", "fit", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "INVERT_FAST_CACHE": str(cache)},
        timeout=300,
        **options,
    )


@pytest.fixture
def saved(tmp_path) -> Path:
    """A model folder that the command can load."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "model"
    make("gpt2").save_pretrained(folder)
    words = Fast(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder


def test_the_command_fits_reports_and_writes(saved, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(" ".join(f"w{i}" for i in ids) for ids in texts(60, 60)))
    out, kept = tmp_path / "lens.safetensors", tmp_path / "kept"
    args = ["--model", str(saved), "--steps", "3", "--text", str(prompts), "--output", str(out), "--json"]
    done = run(*args, cache=kept)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] == 3
    assert set(report["top1"]) == {"written", "random"}
    assert out.read_bytes() == Path(report["path"]).read_bytes()
    shown = run("--model", str(saved), "--lens", "linear", cache=kept)
    assert shown.returncode == 0
    assert "linear top-1" in shown.stdout
    for wrong in (["--minutes", "0"], ["--noise", "x"], ["--lens", "linear", "--steps", "3"]):
        refused = run("--model", str(saved), *wrong, cache=kept)
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr


def test_a_killed_fit_leaves_the_cache_whole_and_the_next_one_ends(saved, tmp_path):
    kept = tmp_path / "kept"
    command = [sys.executable, "-m", "invert_fast.cli.main", "fit", "--model", str(saved), "--steps", "100000"]
    process = subprocess.Popen(
        command, env={**os.environ, "INVERT_FAST_CACHE": str(kept)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(kept.glob("linear-*.safetensors")):
        time.sleep(0.2)
    time.sleep(2.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not any(kept.glob("learned-*"))
    done = run("--model", str(saved), "--steps", "3", cache=kept)
    assert done.returncode == 0, done.stderr
    assert len(list(kept.glob("learned-*.safetensors"))) == 1
