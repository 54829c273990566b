"""What an audit writes is what inverting, scoring and measuring by hand gives; stopped, shared out, it is the same."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from invert_fast import InputError, Inverter, Status
from invert_fast.audit import Settings, audit, join
from invert_fast.audit.read_off import ReadOff, read_off
from invert_fast.audit.tokens import KINDS, kind_of
from invert_fast.cli.main import main
from invert_fast.defences import parse_defence, utility_of
from invert_fast.lens.sums_store import SWITCH, learns

from .conftest import OPTIONS, PROMPTS

SETTINGS = Settings(("embeddings", "last"), ("fp32",), ("gaussian:0.5", "drop:0.4"), max_tokens=9, seed=5, measure=3)
TIMES = {"seconds", "seconds_per_token", "times_bare_pass", "bare_seconds_per_token"}
CUTS = {"forward_tokens", "forward_tokens_per_token"}  # hang on which texts share a pass


def rows(folder, name="results.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def timeless(value, without=TIMES):
    """Without what no two runs share: times, and how sums are rounded in passes that are cut otherwise."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {k: timeless(v, without) for k, v in value.items() if k not in without}
    return [timeless(v, without) for v in value] if isinstance(value, list) else value


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_every_text_is_in_every_cell_once(whole):
    found = summary(whole)
    cells = [(row["layer"], row["precision"], row["defence"], row["strategy"]) for row in found["cells"]]
    wanted = [("none", "auto"), ("gaussian:0.5", "read-off"), ("drop:0.4", "read-off")]
    assert cells == [(layer, "float32", *rest) for layer in ("embeddings", "final_norm") for rest in wanted]
    keys = [(row["layer"], row["defence"], row["text"]) for row in rows(whole)]
    assert len(set(keys)) == len(keys) == len(cells) * len(PROMPTS)
    assert found["texts"] == len(PROMPTS)


@pytest.mark.parametrize("layer", ["embeddings", "final_norm"])
def test_figures_are_those_of_inverting_by_hand(layer, whole, bundled):
    own = Inverter(bundled.decoder.model, bundled.decoder.tokenizer, layer)
    states = own.capture(PROMPTS, max_tokens=9)
    ids = [own.encode(text, 9, special=True) for text in PROMPTS]
    tokens = sum(map(len, ids))
    by_defence = {row["defence"]: row for row in summary(whole)["cells"] if row["layer"] == layer}

    plain = by_defence["none"]
    score = own.score(own.invert(states), PROMPTS, max_tokens=9)
    for name, value in (("exact_match", score.exact_match), ("token_accuracy", score.token_accuracy)):
        assert plain[name]["value"] == pytest.approx(value, abs=1e-6)
    assert plain["certified"]["value"] == pytest.approx(score.certified, abs=1e-6)
    assert (plain["certified_wrong"], plain["loss_added"]["value"]) == (0, pytest.approx(0, abs=1e-4))

    for spec in ("gaussian:0.5", "drop:0.4"):
        defence, row = parse_defence(spec), by_defence[spec]
        found = own.invert(defence.apply_all(states, 5), ReadOff())
        kept = [defence.kept(len(text), 5 + i) for i, text in enumerate(ids)]
        right = sum(
            int(token == text[place])
            for recovery, text, places in zip(found, ids, kept, strict=True)
            for token, place in zip(recovery.token_ids, places, strict=True)
        )
        assert row["token_accuracy"]["value"] == pytest.approx(right / tokens, abs=1e-6)
        utility = utility_of(defence, own.decoder, ids[:3], states[:3], 5)
        assert row["loss"]["value"] == pytest.approx(utility.loss, abs=1e-3)
        assert row["loss_added"]["value"] == pytest.approx(utility.added, abs=1e-3)
        assert row["loss_texts"] == 3
    assert by_defence["gaussian:0.5"]["predicted"] == 1 > by_defence["drop:0.4"]["predicted"]


def test_reading_off_costs_a_pass_and_is_what_the_engine_finds(bundled):
    """Told apart by nothing but whether the engine was asked."""
    batch = bundled.capture(PROMPTS, max_tokens=9)
    truth = np.concatenate([bundled.encode(text, 9, special=True) for text in PROMPTS])
    for spec in ("gaussian:0", "drop:0.4", "gaussian:0.3", "gaussian:3"):
        given = parse_defence(spec).apply_all(batch, 2)
        found, engine = read_off(bundled, given), bundled.invert(given, ReadOff())
        for one, other in zip(found, engine, strict=True):
            assert np.array_equal(one.token_ids, other.token_ids)
            assert np.array_equal(one.status == Status.CERTIFIED, other.status == Status.CERTIFIED)
            assert np.allclose(one.discrete_loss, other.discrete_loss, rtol=1e-3, atol=1e-9)
        cost = sum(one.cost.forward_tokens for one in found)
        if spec == "gaussian:0":
            assert all(one.certified for one in found)
        elif spec.startswith("gaussian"):
            assert cost == len(truth)
            right = np.concatenate([one.token_ids for one in found]) == truth
            assert (right.mean() > 0.8) == (spec == "gaussian:0.3")


def test_a_run_that_is_stopped_goes_on_where_it_was(whole, bundled, tmp_path, monkeypatch):
    monkeypatch.setenv(SWITCH, "on")

    class StoppedError(Exception):
        pass

    done = []

    def stop(cell, tokens):
        done.append(cell)
        assert not learns(0.5), "a lens would know the texts in the next cell"
        if len(done) == 2:
            raise StoppedError

    folder, given = tmp_path / "stopped", (bundled, PROMPTS)
    with pytest.raises(StoppedError):
        audit(*given, folder, SETTINGS, name="bundled", tick=stop)
    assert not (folder / "index.html").exists()
    assert learns(0.5)
    with (folder / "results.jsonl").open("a") as file:  # what kill -9 leaves of the third cell
        file.write('{"layer": "embeddings", "precision": "float32"}\n{"layer": "emb')
    with (folder / "cells.jsonl").open("a") as file:
        file.write('{"layer": "embeddings", "pre')
    with pytest.raises(InputError, match="--resume"):
        audit(*given, folder, SETTINGS, name="bundled")
    with pytest.raises(InputError, match="other settings"):
        audit(*given, folder, Settings(("last",)), name="bundled", resume=True)
    again = []
    audit(*given, folder, SETTINGS, name="bundled", resume=True, tick=lambda cell, _: again.append(cell))
    assert len(again) == 4, "what was done was done again"
    assert timeless(rows(folder)) == timeless(rows(whole))
    assert timeless(summary(folder)) == timeless(summary(whole))
    (folder / "results.jsonl").write_text("")
    with pytest.raises(InputError, match="cut short"):
        audit(*given, folder, SETTINGS, name="bundled", resume=True)


def test_shards_put_together_are_the_whole(whole, place, tmp_path):
    given = ["audit", "--model", "bundled", "--input", str(place / "prompts.jsonl"), *OPTIONS]
    parts = [tmp_path / f"part{i}" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        assert main([*given, "--shard", f"{i}/2", "--output", str(part)]) == 0
    with pytest.raises(InputError, match=r"shards 2/2 are missing"):
        join(parts[:1], tmp_path / "half")
    with pytest.raises(InputError, match="both shard 1/2"):
        join([parts[0], parts[0]], tmp_path / "twice")
    assert main(["audit", "--join", *map(str, reversed(parts)), "--output", str(tmp_path / "joined")]) == 0
    assert timeless(rows(tmp_path / "joined"), TIMES | CUTS) == timeless(rows(whole), TIMES | CUTS)
    assert timeless(summary(tmp_path / "joined"), TIMES | CUTS) == timeless(summary(whole), TIMES | CUTS)
    shutil.copytree(parts[1], tmp_path / "unfinished")
    done = tmp_path / "unfinished" / "cells.jsonl"
    done.write_text("".join(done.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="not finished"):
        join([parts[0], tmp_path / "unfinished"], tmp_path / "bad")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "bundled"], "--input is missing"),
        (["--join", "x", "--model", "bundled"], "leave out --model"),
        (["--model", "bundled", "--input", "P", "--store-dtype", "fp4"], "precision 'fp4' is unknown"),
        (["--model", "bundled", "--input", "P", "--defence", "prayer:1"], "defence 'prayer:1' is unknown"),
        (["--model", "bundled", "--input", "P", "--strategies", "luck"], "strategy 'luck' is unknown"),
        (["--model", "bundled", "--input", "P", "--layers", "block:9"], "layer 'block:9' is not in this model"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(arguments, said, place, tmp_path, capsys):
    arguments = [str(place / "prompts.jsonl") if word == "P" else word for word in arguments]
    assert main(["audit", *arguments, "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_kinds_of_tokens():
    written = {
        "Ġthe": " the",
        "▁the": "the",
        "ing": "ing",
        "Ġ42": " 42",
        "9": "9",
        "Ġ,": " ,",
        "Ċ": "\n",
        "<|end|>": "<|end|>",
    }
    kinds = [kind_of(token, text) for token, text in written.items()]
    assert kinds == [KINDS[0], KINDS[0], KINDS[1], KINDS[2], KINDS[2], KINDS[3], KINDS[4], KINDS[4]]
