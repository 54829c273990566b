"""`logits extract` from the command line: what it writes, prints and refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from invert_fast import InputError
from invert_fast.cli import logits_extract as extract_command

ARGMAX = '{"top": 0}'


def run(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    extract_command.add(parser.add_subparsers(required=True))
    args = parser.parse_args(["extract", *map(str, words)])
    return args.command(args)


def test_several_prompts_to_one_file(tmp_path, capsys):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out.safetensors"
    prompts.write_text("The river was\nA letter from the\n")
    words = ("--model", "bundled", "--prompts", prompts, "--output", output, "--json")
    assert run(*words, "--simulate", '{"top": 20, "bias_limit": 100}') == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["prompts"], summary["complete"], summary["methods"]) == (2, 2, ["exact"])
    assert summary["queries_per_token"] == pytest.approx(summary["theory_per_token"], rel=0.01)
    tensors = load_file(output)
    assert tensors["values"].shape == (2, 4096)
    assert tensors["offsets"].tolist() == [0, 1, 2]
    assert np.abs(np.exp(tensors["values"]).sum(1) - 1).max() < 1e-4
    with safe_open(output, "np") as file:
        meta = file.metadata()
    assert (meta["format"], meta["kind"], meta["dtype"]) == ("invert_fast-logits-1", "log_probs", "float32")
    assert not output.with_name(output.name + ".progress.jsonl").exists()
    with pytest.raises(InputError, match="--overwrite"):
        run(*words)


def test_a_budget_then_resume(tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    words = ("--model", "bundled", "--prompt", "The river was", "--output", output, "--simulate", '{"top": 5}')
    assert run(*words, "--budget", "600", "--json") == 1
    first = json.loads(capsys.readouterr().out)
    assert first["queries"] == 600
    assert "budget" in first["stopped"][0]
    assert 0 < first["tokens_known"] < 4096
    assert load_file(output)["ids"].shape == (first["tokens_known"],)  # what is known is kept
    with pytest.raises(InputError, match="--resume"):
        run(*words, "--overwrite")
    assert run(*words, "--resume") == 0
    assert "1 of 1 prompts complete" in capsys.readouterr().out
    assert load_file(output)["values"].shape == (1, 4096)


def test_the_unembedding_saves_most_queries(tmp_path, capsys):
    words = ("--model", "bundled", "--prompt", "The river was", "--simulate", ARGMAX, "--precision", "0.005")
    assert run(*words, "--unembedding", "bundled", "--output", tmp_path / "a.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["queries"] < 1500


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--simulate", '{"tops": 5}'), "'tops' is unknown"),
        (("--simulate", "5"), "no JSON object"),
        (("--budget", "0"), "whole number above 0"),
        (("--method", "guess"), "invalid choice"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, words, says):
    with pytest.raises(SystemExit):
        run("--model", "bundled", "--prompt", "x", "--output", tmp_path / "a.safetensors", *words)
    assert says in capsys.readouterr().err


def test_a_method_the_api_does_not_allow(tmp_path):
    words = ("--model", "bundled", "--prompt", "x", "--output", tmp_path / "a.safetensors", "--simulate", ARGMAX)
    with pytest.raises(InputError, match="needs two or more log-probs after bias"):
        run(*words, "--method", "exact")
