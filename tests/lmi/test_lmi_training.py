"""Training, its checkpoints, and what is measured of the result."""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from invert_fast.cli import lmi as lmi_command
from invert_fast.lmi import baselines, checkpoint
from invert_fast.lmi.evaluate import evaluate, sweep
from invert_fast.lmi.metrics import bleu, interval, score, token_f1
from invert_fast.lmi.network import build
from invert_fast.lmi.prompts import PromptSet, gather, read_sentences
from invert_fast.lmi.rescore import rescore
from invert_fast.lmi.schedule import batch_rows, rate_at
from invert_fast.lmi.settings import Architecture, Training
from invert_fast.lmi.target import Target
from invert_fast.lmi.training import train
from invert_fast.lmi.view import View
from invert_fast.model.load import load
from invert_fast.types import InputError

BODY = Architecture(
    body="tiny", width=32, layers=1, decoder_layers=1, heads=2, feed_forward=64, whiten=64, estimates=2, dropout=0.1
)
VIEW = View(steps=2, entries=300)
TEXTS = (
    "The old king",
    "She said that he",
    "Rain fell",
    "In the morning",
    "My dear sir",
    "A dog",
    "Why did you go",
    "Yes",
)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(*load("bundled"))


@pytest.fixture(scope="module")
def prompts(target) -> PromptSet:
    ids = target.encode(TEXTS)
    return PromptSet(ids, ids[:4], ids[4:])


def _train(target, prompts, output, steps, resume=False, **settings):
    how = Training(steps=steps, batch=4, rate=3e-3, warm=2, look=3, **settings)
    net = build(target.vocab_size, VIEW, BODY, seed=1)
    return net, train(net, target, prompts, how, output, resume)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_training_cut_short_goes_on_to_the_very_same_weights(target, prompts, tmp_path, optimizer):
    whole, _ = _train(target, prompts, tmp_path / "whole", 7, optimizer=optimizer)
    _train(target, prompts, tmp_path / "cut", 3, optimizer=optimizer)
    resumed, report = _train(target, prompts, tmp_path / "cut", 7, resume=True, optimizer=optimizer)
    assert report.steps == 7
    other = resumed.state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, other[name]), name
    lines = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 7]


def test_a_handful_of_prompts_is_learned_by_heart_and_read_back(target, prompts, tmp_path):
    how = Training(steps=150, batch=8, optimizer="muon", rate=1e-2, warm=5, fall=0.5, look=50)
    net = build(target.vocab_size, VIEW, replace(BODY, dropout=0.0))
    train(net, target, replace(prompts, held=prompts.train), how, tmp_path)
    stored, about = checkpoint.read(tmp_path)
    result = evaluate(stored, target, prompts.train)
    assert result.found == list(TEXTS)
    assert result.score.exact.mean == 100.0
    assert about["held_loss"] < 0.1
    asked = evaluate(stored, target, prompts.train, beams=3, ask=True)
    assert (asked.verified, asked.false) == (len(TEXTS), 0)
    blurred = {(name, value): result for name, value, result in sweep(stored, target, prompts.train, ["top_k"])}
    assert blurred["as trained", 0.0].exact.mean == 100.0
    assert blurred["top_k", 1.0].exact.mean < 50.0  # of 300 entries none or one says more than the rest


def test_asking_the_target_never_verifies_a_wrong_prompt(target):
    true, near = target.encode(["The old king", "She said"]), target.encode(["The old man", "She says"])
    vectors = target.vectors(true, VIEW)
    found = rescore(target, VIEW, vectors, [[near[0], true[0]], [near[1], []]])
    assert (found.chosen, found.verified) == ([1, 0], [True, False])
    assert found.distance[0] < 1e-4 < 1e-2 < found.distance[1]
    assert found.queries == 3
    blurred = replace(VIEW, noise=0.5)
    assert not any(rescore(target, blurred, vectors, [[ids] for ids in true]).verified)


def test_early_stopping_keeps_the_best_weights(target, prompts, tmp_path):
    other = replace(prompts, held=target.encode(["Quite unlike", "anything else here"]))
    net, report = _train(target, other, tmp_path, 400, optimizer="muon", patience=2)
    assert report.steps < 400
    assert report.steps == report.at + 6  # two looks of three steps without gain
    assert checkpoint.read(tmp_path)[1]["step"] == report.at
    assert net.shape == checkpoint.read(tmp_path)[0].shape


def test_batches_go_through_all_prompts_once_an_epoch():
    rows = torch.cat([batch_rows(10, 4, seed=0, step=i) for i in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert not torch.equal(rows[:10], rows[10:])
    assert torch.equal(batch_rows(10, 4, 0, 3), batch_rows(10, 4, 0, 3))
    how = Training(steps=100, warm=10, fall=0.5)
    assert [rate_at(i, how) for i in (0, 9, 49, 75, 99)] == [0.1, 1.0, 1.0, 0.5, 0.02]


def test_hostile_and_damaged_checkpoints_are_refused(target, prompts, tmp_path):
    _train(target, prompts, tmp_path, 3)
    path = tmp_path / checkpoint.WEIGHTS
    tensors = load_file(path)
    about = {"about": json.dumps(checkpoint.read_tensors(path)[0])}
    name = "net.unroll.matrices"

    def refused(word, tensors=tensors, **changes):
        said = json.loads(about["about"])
        for key, value in changes.items():
            said["shape"][key] = value
        bad = tmp_path / "bad.safetensors"
        save_file(tensors, bad, {"about": json.dumps(said)})
        with pytest.raises(InputError, match=word):
            checkpoint.read(bad)

    refused("lacks", {k: v for k, v in tensors.items() if k != name})
    refused("has net.more", {**tensors, "net.more": torch.zeros(1)})
    refused("expected", {**tensors, name: torch.zeros(3)})
    refused("finite", {**tensors, name: torch.full_like(tensors[name], math.nan)})
    config = json.loads(about["about"])["shape"]["config"]
    refused("d_model", config={**config, "d_model": 10**8})
    refused("encoder-decoder", config={**config, "model_type": "gpt2"})
    refused("describe", view={"kind": "log-probs", "hostile": 1})
    refused("describe", vocab_size=10**12)
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(InputError, match="is not an inverter"):
        checkpoint.read(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.read(tmp_path / "nothing")


def test_a_training_goes_on_only_as_it_began(target, prompts, tmp_path):
    _train(target, prompts, tmp_path, 3)
    with pytest.raises(InputError, match="--resume"):
        _train(target, prompts, tmp_path, 6)
    with pytest.raises(InputError, match="clip"):
        _train(target, prompts, tmp_path, 6, resume=True, clip=2.0)
    with pytest.raises(InputError, match="other prompts"):
        _train(target, replace(prompts, train=prompts.train[1:]), tmp_path, 6, resume=True)
    path = tmp_path / checkpoint.TRAINING
    tensors = load_file(path)
    said = {"about": json.dumps(checkpoint.read_tensors(path)[0])}
    save_file({k: v for k, v in tensors.items() if not k.endswith("exp_avg")}, path, said)
    with pytest.raises(InputError, match="optimizer"):
        _train(target, prompts, tmp_path, 6, resume=True)
    with pytest.raises(InputError, match="vocabulary of 100"):
        train(build(100, View(), BODY), target, prompts, Training(), tmp_path / "other")


def test_metrics_equal_values_computed_by_hand():
    assert token_f1("the cat sat", "the cat, the dog") == pytest.approx(2 * 2 / (3 + 4))  # {the cat} of {the cat , dog}
    assert token_f1("a b", "b a a") == 1.0
    assert token_f1("", "a") == token_f1("x", "y") == 0.0
    assert bleu("the cat sat down", "the cat sat down") == pytest.approx(100.0)
    assert bleu("So what", "So what") == pytest.approx(100.0)  # two words: effective order
    # 1-grams 3/4, 2-grams 2/3, 3-grams 1/2, 4-grams 0/1 smoothed to 1/2
    assert bleu("the cat sat up", "the cat sat down") == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    result = score(["a b", "x y"], ["a b", "x z"])
    assert result.exact.mean == 50.0
    assert result.f1.mean == pytest.approx((100 + 50) / 2)
    assert (result.exact.low, result.exact.high) == (0.0, 100.0)
    with pytest.raises(InputError, match="equally many"):
        score(["a"], [])


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = interval(values)
    wide = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - wide, abs=0.03)
    assert found.high == pytest.approx(values.mean() + wide, abs=0.03)


def _story(path):
    rng = random.Random(0)
    words = ["river", "house", "king", "morning", "garden", "letter", "winter", "road", "captain", "window", "sister"]
    sentences = [" ".join(["The", *rng.sample(words, 5)]) + "." for _ in range(300)]
    path.write_text(" ".join(sentences))
    return path


def test_held_out_prompts_are_disjoint_and_come_back_as_written(target, tmp_path):
    sentences = read_sentences(_story(tmp_path / "story.txt"))
    found = gather(target, [sentences], 100, (2, 5), held=20, test=30, self_sampled=0.5, seed=3)
    parts = [set(map(tuple, part)) for part in (found.train, found.held, found.test)]
    assert (len(parts[1]), len(parts[2])) == (20, 30)
    assert len(parts[0] | parts[1] | parts[2]) == sum(map(len, parts))
    every = [*found.train, *found.held, *found.test]
    assert target.encode(target.decode(every)) == every
    assert {len(ids) for ids in every} <= {2, 3, 4, 5}
    assert found == gather(target, [sentences], 100, (2, 5), held=20, test=30, self_sampled=0.5, seed=3)
    with pytest.raises(InputError, match="more text"):
        gather(target, [sentences[:10]], 100, (2, 5), held=20, test=30)
    with pytest.raises(InputError, match="does not exist"):
        read_sentences(tmp_path / "none.txt")
    (tmp_path / "bad.jsonl").write_text('{"txt": 1}\n')
    with pytest.raises(InputError, match="line 1"):
        read_sentences(tmp_path / "bad.jsonl")


def _run(*words) -> int:
    parser = argparse.ArgumentParser()
    lmi_command.add(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    return args.command(args)


def test_one_command_trains_and_one_measures_with_the_baselines(tmp_path, capsys):
    story, out = _story(tmp_path / "story.txt"), tmp_path / "out"
    small = ["--preset", "small", "--prompts", 60, "--held", 8, "--test", 8, "--steps", 2, "--look", 1, "--json"]
    assert _run("train", "--model", "bundled", "--text", story, "--output", out, "--prompt-tokens", 2, 4, *small) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["steps"] == 2
    assert len((out / "test.jsonl").read_text().splitlines()) == 8
    shown = ["--ask", "--beams", 2, "--baselines", "--sweep", "top_k", "--json"]
    assert _run("evaluate", "--inverter", out, "--model", "bundled", *shown, "--output", out / "found.jsonl") == 0
    measured = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in measured["results"]]
    assert names == [
        "2 beams, asked", "as trained", "top_k 1", "top_k 10", "top_k 100", "top_k 1000",
        *[ask.strip() for ask in baselines.JAILBREAKS], "few-shot",
    ]  # fmt: skip
    assert all(0 <= row["bleu"]["low"] <= row["bleu"]["high"] <= 100 for row in measured["results"])
    assert measured["false"] == 0
    assert len((out / "found.jsonl").read_text().splitlines()) == 8


def test_the_text_only_inverter_trains(target, prompts, tmp_path):
    view = View(kind="text", steps=4)
    net = build(target.vocab_size, view, replace(BODY, whiten=0, estimates=0))
    how = Training(steps=60, batch=8, optimizer="muon", rate=1e-2, warm=5, look=30)
    report = train(net, target, replace(prompts, held=prompts.train), how, tmp_path)
    assert report.held_loss < 4.0  # eight texts known from what followed them
    assert len(evaluate(checkpoint.read(tmp_path)[0], target, prompts.train).found) == len(TEXTS)


def test_transfer_needs_the_vocabulary_of_the_training(target, prompts, tmp_path):
    _train(target, prompts, tmp_path, 3)
    net, _ = checkpoint.read(tmp_path)
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    same = Target(GPT2LMHeadModel(GPT2Config(vocab_size=4096, **size)), target.tokenizer)
    assert evaluate(net, same, prompts.test).score.prompts == 4
    other = Target(GPT2LMHeadModel(GPT2Config(vocab_size=4100, **size)), target.tokenizer)
    with pytest.raises(InputError, match="4100"):
        evaluate(net, other, prompts.test)
