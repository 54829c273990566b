"""Noise from the command line: stated, in the file, or estimated; posteriors in the lines and in the score."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from invert_fast import Noise
from invert_fast.cli.main import main
from invert_fast.storage.states import open_states, write_states

TEXTS = ("The ferry leaves at half past six.", "Meet me at a quarter past nine.")


def run(command, *rest):
    return main([command, "--model", "bundled", *map(str, rest)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """prompts.jsonl, and its states with noise of 0.1."""
    root = tmp_path_factory.mktemp("noise")
    (root / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    assert run("capture", "--input", root / "prompts.jsonl", "--output", root / "clean.safetensors") == 0
    source, out = root / "clean.safetensors", root / "noisy.safetensors"
    assert run("defend", "--input", source, "--defence", "gaussian:0.1", "--output", out, "--measure", 1) == 0
    return root


@pytest.mark.parametrize("stated", ["gaussian:0.1", "auto"])
def test_noise_that_is_stated_or_estimated(folder, tmp_path, capsys, stated):
    out = tmp_path / "recovered.jsonl"
    assert run("invert", folder / "noisy.safetensors", "--noise", stated, "--output", out) in (0, 1)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == list(TEXTS)
    for row in rows:
        assert len(row["posterior"]) == len(row["token_ids"])
        assert all(0.5 < p <= 1 for p in row["posterior"])
        assert {"best match"}.isdisjoint(row["status"]), "the noise is as loud as was said"
    capsys.readouterr()
    assert run("score", out, "--reference", folder / "prompts.jsonl", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["token_accuracy"] == 1.0
    assert figures["posterior"] == pytest.approx(1.0, abs=0.05)
    assert figures["calibration_error"] < 0.05
    assert run("score", out, "--reference", folder / "prompts.jsonl") == 0
    assert "calibration error" in capsys.readouterr().out


def test_a_file_says_its_noise(tmp_path, caplog):
    def told(noise: str):
        path = tmp_path / "states.safetensors"
        write_states(path, [torch.ones(2, 4)], [2], 4, torch.float32, {"layer": "final_norm", "noise": noise})
        return open_states(path).states(0, -1).noise

    assert told("laplacian:0.25") == Noise("laplacian", 0.25)
    assert told("gaussian:0.5:absolute") == Noise("gaussian", 0.5, relative=False)
    with caplog.at_level(logging.WARNING, "invert_fast"):
        assert told("pink") is None
    assert "--noise" in caplog.text


@pytest.mark.parametrize("wrong", ["gaussian", "gaussian:-1", "brown:0.1", "gaussian:0.1:relative"])
def test_noise_that_is_none_is_refused(folder, tmp_path, capsys, wrong):
    arguments = ("invert", folder / "noisy.safetensors", "--noise", wrong, "--output", tmp_path / "out.jsonl")
    try:
        status = run(*arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert "gaussian:0.05" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
