"""`invert-fast prepare` makes what the first inversion needs, says what and where, and makes nothing twice."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from invert_fast import Inverter
from invert_fast.cli.main import main
from invert_fast.cli.prepare import prepare
from invert_fast.lens import linear_fit, mixture

from ..families import exact, make, texts


@pytest.fixture
def small(cache, monkeypatch) -> Path:
    monkeypatch.setattr(mixture, "_LEAST", 2048)
    return cache


def test_everything_is_made_once_and_used_by_the_inversion(small, monkeypatch):
    inv = Inverter(make("llama"))
    made = prepare(inv, [("float32", "float32"), ("bfloat16", "float32")])
    assert [each.source == "the cache" for each in made] == [False] * 3
    assert {each.path for each in made} == {str(path) for path in small.iterdir()}
    monkeypatch.setattr(linear_fit, "fit_linear", lambda *_: pytest.fail("fitted again"))
    other, truth = Inverter(make("llama")), texts(12, 5)
    again = prepare(other, [("float32", "float32"), ("bfloat16", "float32")])
    assert [each.source for each in again] == ["the cache"] * 3
    assert exact(other.invert(other.capture(truth)), truth)


def test_without_a_cache_folder_it_says_that_nothing_is_kept(small, monkeypatch):
    monkeypatch.setenv("INVERT_FAST_CACHE", "off")
    assert [each.path for each in prepare(Inverter(make("llama")), [("float32", "float32")])] == [None, None]


def test_the_command_reports_in_words_and_as_json(small, capsys):
    assert main(["prepare", "--model", "bundled", "--device", "cpu", "--json"]) == 0
    lens, tolerances = json.loads(capsys.readouterr().out)
    assert lens["what"].startswith("learned lens")
    assert Path(tolerances["path"]).is_file()
    assert main(["prepare", "--model", "bundled", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "from an earlier fit" in shown
    assert f"from the cache, 0.0 s; kept in {tolerances['path']}" in shown


def test_what_cannot_be_is_refused(capsys):
    assert main(["prepare", "--model", "no/such/folder/here"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["prepare", "--model", "bundled", "--states-dtype", "int4"])


def test_verbose_says_what_was_made_from_what_and_where_it_is(small, caplog):
    log, command = logging.getLogger("invert_fast"), ["prepare", "--model", "bundled", "--layer", "block:1"]
    log.addHandler(caplog.handler)
    try:
        said = []
        for options in (["--verbose"], ["--verbose"], []):
            caplog.clear()
            assert main([*command, "--device", "cpu", *options]) == 0
            said.append(caplog.text)
    finally:
        log.removeHandler(caplog.handler)
    made, again, quiet = said
    paths = [*map(str, small.glob("*.safetensors"))]
    kept = [path for path in paths if f"kept in {path}" in made]
    assert len(kept) == 2  # lens, tolerances
    assert "% of held-out tokens right; fitted on " in made
    assert all(f"read from {path}" in again for path in kept)
    assert "read from" not in quiet
