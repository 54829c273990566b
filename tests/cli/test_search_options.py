"""The gradient modes on the command line."""

from __future__ import annotations

import json

import pytest

from invert_fast.cli.main import main


def test_the_command_line_runs_both(tmp_path, capsys):
    """On the bundled model; one token, since the search takes hundreds of steps for each."""
    prompts, states = tmp_path / "prompts.txt", tmp_path / "states.safetensors"
    prompts.write_text("the\nHe\n", encoding="utf-8")
    given = ["--model", "bundled", "--device", "cpu"]
    assert main(["capture", *given, "--input", str(prompts), "--output", str(states), "--max-tokens", "1"]) == 0
    outs = {}
    for name, options in {
        "sipit": ["--strategy", "sipit"],
        "continuous": ["--strategy", "continuous", "--preset", "fast", "--trace"],
    }.items():
        out = tmp_path / f"{name}.jsonl"
        assert main(["invert", *given, str(states), "--output", str(out), "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["strategy"] == name
        outs[name] = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert sorted(row["text"] for row in outs[name]) == ["He", "the"]
    assert all("trace" not in row for row in outs["sipit"])
    for row in outs["continuous"]:
        trace = row["trace"]
        (loss,), (rank,), (steps,) = trace["loss"], trace["rank"], trace["rank_step"]
        assert len(loss) == steps[-1] <= 600
        assert len(rank) == len(steps)
        assert trace["rank_at_commit"] == [rank[-1]]
        assert trace["first_failure"] is None
        assert trace["cumulative_loss"][0] < 1e-8


@pytest.mark.parametrize("options", [["--preset", "fast"], ["--trace"], ["--strategy", "sipit", "--trace"]])
def test_options_of_the_continuous_search_are_refused_elsewhere(options, tmp_path, capsys):
    given = ["invert", "--model", "bundled", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert main([*given, *options]) == 2
    assert "add --strategy continuous" in capsys.readouterr().err


def test_the_presets_that_are_offered_are_those_of_the_strategy():
    """Two lists, since the first is read without PyTorch."""
    from invert_fast.cli import recovering
    from invert_fast.strategies import continuous

    assert tuple(continuous.PRESETS) == recovering.PRESETS
