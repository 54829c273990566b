"""inspect_ai: the evaluation is found by its name, and what it logs is what the engine found."""

from __future__ import annotations

import pytest

from invert_fast.integrations.needs import INSPECT

from .needed import needed
from .page import ROOT

needed(INSPECT)


def test_the_example_scores_and_logs(example):
    from inspect_ai.log import read_eval_log

    log = example("inspect_ai")["log"]
    assert log.status == "success", log.error
    figures = {one.name: {name: metric.value for name, metric in one.metrics.items()} for one in log.results.scores}
    assert figures == {name: {"mean": 1.0, "stderr": 0.0} for name in ("token_accuracy", "exact_match", "certified")}
    read = read_eval_log(log.location)
    first = (ROOT / "invert_fast/bundled/sentences.txt").read_text(encoding="utf-8").splitlines()[0]
    sample = read.samples[0]
    assert [sample.input, sample.output.completion, sample.scores["leakage"].answer] == [first] * 3
    assert sample.scores["leakage"].metadata["layer"] == "block:2"


def test_noise_of_a_defence_shows_in_the_scores_and_a_target_without_weights_is_named(folder):
    from inspect_ai import eval as run

    from invert_fast.integrations.inspect import hidden_state_leakage

    noisy = hidden_state_leakage(
        target="bundled", layer="block:2", noise=3.0, strategy="speculative", dataset="prompts.jsonl"
    )
    (log,) = run(noisy, model="mockllm/model", display="none")
    assert log.status == "success", log.error
    means = {one.name: one.metrics["mean"].value for one in log.results.scores}
    assert means["certified"] == 0
    assert means["exact_match"] == 0
    (log,) = run(hidden_state_leakage(dataset="prompts.jsonl"), model="mockllm/model", display="none")
    assert log.status == "error"
    assert "name the model whose states leak by `-T target=…`" in log.error.message


def test_inspect_finds_it_by_the_entry_point(folder):
    from importlib.metadata import entry_points

    from inspect_ai._util.registry import registry_create

    found = [point for point in entry_points(group="inspect_ai") if point.name == "invert_fast"]
    if not found:
        pytest.skip("invert_fast was installed before it had this entry point: pip install -e . again")
    assert found[0].value == "invert_fast.integrations.inspect"
    task = registry_create("task", "invert_fast/hidden_state_leakage", target="bundled")
    assert len(task.dataset) == 36
