"""Figures show what was searched: their numbers follow from the runs, and a stopped run goes on."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from invert_fast import Continuous, InputError, Inverter
from invert_fast.cli.main import main
from invert_fast.figures import making, runs
from invert_fast.figures.data import positions, quantiles
from invert_fast.figures.losses import cumulative
from invert_fast.figures.ranks import at_errors, by_budget
from invert_fast.figures.runs import PLAIN, SHORT, Plan, papers_share
from invert_fast.figures.svg import Axis, Panel, around, sheet
from invert_fast.figures.tokens import KINDS, kind_of, problematic
from invert_fast.figures.traced import run_of
from invert_fast.storage.recovered import recovery_line

from ..families import VOCAB, Tokenizer, make, texts

TINY = {"budgets": (2, 6), "baseline": 6, "longest": 6, "short": 2}


def small(tmp_path, step=lambda _: None, **changes):
    inverter = Inverter(make("gpt2"), Tokenizer(VOCAB))
    plan = Plan(texts(3, 3, 3, seed=4), texts(3, 3, seed=5), candidates=40, **{**TINY, **changes})
    return making.make(inverter, plan, tmp_path / "out", {"model": "tiny"}, step), plan


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of figures, what was drawn, and the searches."""
    folder = tmp_path_factory.mktemp("figures")
    made, plan = small(folder)
    return folder / "out", made, plan, json.loads((folder / "out" / making.DATA).read_text(encoding="utf-8"))["rows"]


def test_all_figures_are_drawn_and_stand_on_one_page(finished):
    folder, made, plan, found = finished
    assert [figure.name for figure in made] == [f"figure{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8)]
    assert set(found) == {SHORT, PLAIN, *(f"K = {steps}" for steps in plan.budgets)}
    page = (folder / making.PAGE).read_text(encoding="utf-8")
    for figure in made:
        svg = (folder / f"{figure.name}.svg").read_text(encoding="utf-8")
        assert ET.fromstring(svg).tag.endswith("svg")
        assert svg in page
        assert figure.rows
    assert "66.9" in page, "the paper's figure stands beside ours"
    assert not re.search(r"<script|<img|<link|url\(|NaN|inf\b", page)


def test_figures_state_what_the_searches_found(finished):
    _, made, _, found = finished
    for run in found.values():
        right = [prompt["ids"] == prompt["found"] for prompt in run["prompts"]]
        assert run["exact"] == sum(right) / len(right)
        assert [prompt["wrong"] is None for prompt in run["prompts"]] == right
        assert [prompt["detected"] for prompt in run["prompts"]] == [prompt["wrong"] for prompt in run["prompts"]]
        for one in positions(run):
            assert one.loss[-1][0] == one.steps - 1
            assert one.rank[-1][0] == one.steps
    wrong = [one for one in positions(found[SHORT]) if not one.right]
    assert 0 < len(wrong) <= 5
    table = {row[1]: row[2] for row in making.rows_of(made)}
    assert table["exact match at K = 6, %"] == f"{100 * found['K = 6']['exact']:.1f}"
    near = sum(one.rank[-1][1] <= 10 for one in wrong) / len(wrong)
    (said,) = [value for what, value in table.items() if what.startswith("first errors") and "K = 2" in what]
    assert said == f"{100 * near:.1f}"
    assert table["prompts whose first error the loss names"] == "8 of 8"


def test_a_stopped_run_goes_on_and_searches_nothing_twice(tmp_path, monkeypatch):
    search, made = runs.search, []

    def stops(inverter, strategy, prompts):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(strategy.steps)
        return search(inverter, strategy, prompts)

    monkeypatch.setattr(making, "search", stops)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path)
    assert made == [2, 2]
    monkeypatch.setattr(making, "search", lambda *given: made.append(given[1].steps) or search(*given))
    told = []
    small(tmp_path, told.append)
    assert made == [2, 2, 6, 6]
    assert told == [SHORT, "K = 2", "K = 6", PLAIN]
    small(tmp_path)
    assert len(made) == 4, "what is finished is only drawn again"
    with pytest.raises(InputError, match=r"another setup \(candidates 40, now 41\)"):
        making.make(
            Inverter(make("gpt2"), Tokenizer(VOCAB)),
            Plan(texts(3, 3, 3, seed=4), texts(3, 3, seed=5), candidates=41, **TINY),
            tmp_path / "out",
            {"model": "tiny"},
        )


def test_a_search_that_is_over_stays_as_it_ended():
    rows = quantiles([[(0.0, 8.0), (2.0, 4.0)], [(0.0, 6.0), (10.0, 2.0)], []], last=10, points=6)
    assert [(step, median) for step, _, median, _ in rows] == [
        *((0.0, 7.0), (2.0, 5.0), (4.0, 5.0), (6.0, 5.0), (8.0, 5.0), (10.0, 3.0))
    ]
    assert quantiles([], last=10) == []


def errs(tokens: list[str], wrong: int | None) -> dict:
    ids = [*range(len(tokens))]
    judged = len(ids) if wrong is None else wrong + 1
    cumulative = [1e-12 if wrong is None or t < wrong else 1e-2 * (t + 1) for t in ids]
    return {
        "ids": ids,
        "found": ids,
        "tokens": tokens,
        "wrong": wrong,
        "detected": wrong,
        "cumulative": cumulative,
        "steps": [4] * judged,
        "loss": [[1.0, 0.5]] * judged,
        "rank": [[9, 3]] * judged,
    }


def test_errors_are_counted_by_token_and_kind():
    prompts = [errs([" the", "<b>&", "7"], 0), errs([" the", "x", "\u202e"], 2), errs([" of", "a", "b"], None)]
    run = {
        "settings": {"steps": 4, "candidates": 1, "stride": 4},
        "exact": 1 / 4,
        "similarity": 0.5,
        "prompts": [*prompts, errs(["<b>&", "x", "y"], 0)],
    }
    (figure,) = problematic({SHORT: run}, 1000)
    rows = {what: ours for what, ours, _ in figure.rows}
    assert rows["errors"] == "3 of 4 prompts"
    assert rows["of which space-prefixed, %"] == "33.3"
    assert rows["space-prefixed of all tokens, %"] == "37.5"  # 3 of the 8 up to the first errors
    assert "“&lt;b&gt;&amp;”" in figure.svg
    assert "\\u202e" in figure.svg
    assert "\u202e" not in figure.svg
    ET.fromstring(figure.svg)
    (losses,) = cumulative({SHORT: run}, 1000)
    assert dict(row[:2] for row in losses.rows)["decades between wrong and right at the end"] == "10.5"
    (ranks,) = at_errors({SHORT: run}, 1000)
    assert ranks.rows[0][1] == "100.0"
    assert by_budget({}, (1, 2)) == cumulative({}, 5) == problematic({}, 5) == []
    kinds = [kind_of(token) for token in (" the", "ing", ",", "42", "\n", " ", "   ", "é")]
    assert kinds == [KINDS[i] for i in (0, 1, 2, 3, 4, 4, 4, 1)]


def test_axes_hold_what_is_shown():
    log = around([3e-5, 0.2, float("nan"), 0.0], "y", log=True)
    assert (log.low, log.high) == (1e-5, 1.0)
    assert [log.share(v) for v in (1e-5, 1e-9, 1.0, 7.0)] == [0, 0, 1, 1]
    assert log.share(10**-2.5) == pytest.approx(0.5)
    assert [said for _, said in log.ticks()] == ["1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "1"]
    assert [said for _, said in Axis("x", 0, 1000).ticks()] == ["0", "200", "400", "600", "800", "1,000"]
    assert [said for _, said in Axis("x", 1, 3, whole=True).ticks()] == ["1", "2", "3"]
    assert around([], "nothing", log=True).share(1.0) == 0.0
    panel = Panel("<title>", Axis("x", 0, 10), log)
    panel.line([(0, 1.0), (10, 1e-5)], "#000", "a & b")
    panel.band([(0, 1e-5, 1.0), (10, 1e-4, 1e-3)], "#000")
    panel.bars([(5, 1.0)], "#111")
    panel.marks([(5, 0.1)], "#222")
    drawn = sheet("s", [panel, panel], ["a note " * 40])
    root = ET.fromstring(drawn)
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 <= float(text.attrib["y"]) <= height
    assert width == 840
    assert "a &amp; b" in drawn


def test_candidates_are_the_papers_share_of_the_vocabulary():
    assert [papers_share(size) for size in (50_257, 4096, 7)] == [2000, 163, 1]


def test_the_command_draws_and_compares(tmp_path, monkeypatch, capsys):
    plan_of = making.plan_of
    monkeypatch.setattr(making, "plan_of", lambda *given: replace(plan_of(*given), **TINY))
    given = ["figures", "--prompts", "1", "--tokens", "2", "--output", str(tmp_path / "out")]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "exact match at K = 1,000, %" in shown
    assert f"{tmp_path / 'out' / 'index.html'}: 8 figures" in shown
    assert (tmp_path / "out" / "figure5.svg").is_file()
    assert main([*given, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["figure"] for row in rows} == {*"12345678"}
    assert main([*given, "--tokens", "900"]) == 2
    assert "prompts have 900 tokens" in capsys.readouterr().err
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert main(["figures", "--output", str(tmp_path / "file")]) == 2


def test_traces_of_an_inversion_are_drawn(tmp_path, capsys):
    folder, model = tmp_path / "out", ("--model", "bundled")
    prompts, found = tmp_path / "prompts.txt", tmp_path / "found.jsonl"
    prompts.write_text("The password is hunter2.\nMeet me at nine.\n", encoding="utf-8")
    inverter = Inverter.from_pretrained("bundled", device="cpu")
    strategy = Continuous(12, 64, trace=True, trace_stride=4)
    ids = [inverter.encode(line)[:2] for line in prompts.read_text(encoding="utf-8").splitlines()]
    lines = [recovery_line(i, one) for i, one in enumerate(inverter.invert(inverter.capture(ids), strategy))]
    found.write_text("\n".join(lines), encoding="utf-8")
    given = ["figures", *model, "--recovered", str(found), "--output", str(folder)]
    assert main([*given, "--reference", str(prompts), "--json"]) == 0
    rows = {row["what"]: row["ours"] for row in json.loads(capsys.readouterr().out)}
    assert rows["tokens committed rightly, wrongly (K = 12)"] == "4, 0"
    assert sorted(path.name for path in folder.iterdir()) == [*(f"figure{i}.svg" for i in (5, 6, 7, 8)), making.PAGE]
    assert main(given) == 0, "without a reference the discrete loss says what is right"
    # a wrong token: nothing is said of ranks that the file does not have
    row = json.loads(lines[0])
    row["token_ids"][1] += 1
    run = run_of([row], ids, lambda some: [*map(str, some)], "found.jsonl")
    (prompt,) = run["prompts"]
    assert (prompt["wrong"], prompt["rank"][1]) == (1, [])
    assert run["settings"]["stride"] == 4
    assert prompt["loss"][0][0] == row["trace"]["loss"][0][0]
    assert len(prompt["rank"][0]) == len(row["trace"]["rank"][0])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "none of 1 texts has a trace"),
        ({"trace": 7}, "the trace of text 0 is none"),
        (
            {"trace": {"first_failure": None, "loss": [], "rank": [], "cumulative_loss": []}},
            "0 losses and 0 ranks of 2",
        ),
        ({"trace": {}, "index": 5}, "text 5 of 2 tokens is none of the 1 references"),
    ],
)
def test_files_without_traces_are_refused(row, said):
    with pytest.raises(InputError, match=said):
        run_of([{"index": 0, "token_ids": [1, 2], **row}], [[1, 2]], lambda ids: [*map(str, ids)], "x.jsonl")
