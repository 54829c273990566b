"""bench/paper_tables.py: every row is measured and exact where it must be, and a stopped run goes on."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from invert_fast import Continuous
from invert_fast.cli import demo

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def tables():
    """The command, as it is imported when it runs: with bench/ on the path."""
    sys.path.insert(0, str(BENCH))
    try:
        import paper_tables  # pyright: ignore[reportMissingImports]

        yield paper_tables
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(demo.sentences()[:3]), encoding="utf-8")
    return path


def small(tables, **changes):
    """A plan of few steps: the candidates make up for them."""
    points = {name: lambda name=name: Continuous(8, 4096, name=name) for name in ("fast", "baseline", "high-accuracy")}
    return tables.measure.Plan(
        baseline_texts=1, one_lane_texts=1, ablation_texts=2, steps=(2, 4, 6), presets=points, **changes
    )


def given(tmp_path, prompts, *more):
    common = ["--model", "bundled", "--device", "cpu", "--prompts", str(prompts), "--wikipedia", str(prompts)]
    return [*common, "--limit", "3", "--tokens", "1", "--output", str(tmp_path / "out" / "run"), *more]


def test_all_tables_with_the_papers_figures_beside_ours(tables, tmp_path, prompts, capsys):
    assert tables.main(given(tmp_path, prompts), small(tables)) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == (tmp_path / "out" / "run.md").read_text(encoding="utf-8").strip()
    for title in ("Table 1", "Table 2", "Table 3", "Tables 4 and 5", "All modes", "Ablations"):
        assert f"## {title}" in shown
    for figure in ("97.5", "66.9", "27.5", "0.65", "0.918"):
        assert figure in shown, f"the paper's {figure}"
    found = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    rows = found["rows"]
    assert found["setup"]["prompts"] == "3 of prompts.txt"
    for key in (
        "fast, c4",
        "fast, wikipedia",
        "mode: auto",
        "mode: sipit, 1 lane",
        "mode: official sipit",
        "mode: vma",
    ):
        assert rows[key]["exact_match"] == 1.0, key
        assert rows[key]["seconds_per_token"] > 0
    assert rows["mode: sipit"]["backward_tokens_per_token"] >= 1
    assert rows["mode: vma"]["backward_tokens_per_token"] == 0
    assert rows["ablation: candidates = 1"]["exact_match"] < 1, "one candidate after six steps is too few"
    line = next(x for x in shown.splitlines() if x.startswith("| sipit |"))
    times = rows["mode: official sipit"]["seconds_per_token"] / rows["mode: sipit"]["seconds_per_token"]
    assert f"{times:,.3g} ×" in line


def test_a_stopped_run_goes_on_and_measures_nothing_twice(tables, tmp_path, prompts, monkeypatch, capsys):
    batched, measured = tables.measure.batched, []

    def stops(inverter, ids, strategy, lanes):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(strategy.name)
        return batched(inverter, ids, strategy, lanes)

    monkeypatch.setattr(tables.measure, "batched", stops)
    arguments = given(tmp_path, prompts, "--only", "tables")
    assert tables.main(arguments, small(tables)) == 130
    before = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["rows"]
    assert "| fast | c4 | 100.0 |" in (tmp_path / "out" / "run.md").read_text(encoding="utf-8")
    monkeypatch.setattr(tables.measure, "batched", lambda *a: measured.append(a[2].name) or batched(*a))
    assert tables.main(arguments, small(tables)) == 0
    assert measured == ["fast", "baseline", "high-accuracy", "fast"]
    after = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["rows"]
    assert {key: after[key] for key in before} == before
    assert tables.main([*arguments, "--tokens", "2"], small(tables)) == 2
    assert re.search(r"another setup .*tokens_a_prompt 1, now 2", capsys.readouterr().err)


def test_a_certified_wrong_prompt_stops_the_run(tables, monkeypatch):
    inverter = tables.Inverter.from_pretrained("bundled", device="cpu")
    ids = [inverter.encode(demo.sentences()[0])[:3]]
    invert = type(inverter).invert

    def lies(self, *arguments, **options):
        return [replace(r, token_ids=r.token_ids + 1) for r in invert(self, *arguments, **options)]

    monkeypatch.setattr(type(inverter), "invert", lies)
    with pytest.raises(AssertionError, match="certified and wrong"):
        tables.measure.batched(inverter, ids, tables.measure.strategy_named("speculative"), 1)


def test_without_a_prompt_of_that_many_tokens_it_says_so(tables, tmp_path, prompts, capsys):
    assert tables.main(given(tmp_path, prompts, "--tokens", "900")) == 2
    assert "no prompt of 900 tokens" in capsys.readouterr().err
