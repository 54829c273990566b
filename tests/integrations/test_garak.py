"""garak: a real run of its command line, with its report read back; in a process and folders of its own."""

from __future__ import annotations

import json

from invert_fast.integrations.needs import GARAK

from .needed import needed
from .page import PASSWORD, block

needed(GARAK)
MORE = """
from garak import _plugins
from garak.attempt import Attempt, Message
from garak.exception import PluginConfigurationError
from invert_fast.integrations.garak import DETECTOR, PROBE

try:
    _plugins.load_plugin(PROBE).probe(_plugins.load_plugin("generators.test.Blank"))
except PluginConfigurationError as error:
    print(error)
attempt = Attempt(prompt=Message("abcd", lang="en"))
attempt.outputs = [Message("abcd"), Message("xaby"), Message("")]
print(_plugins.load_plugin(DETECTOR).detect(attempt))
"""


def test_the_example_runs_the_probe_and_reports_every_prompt(apart, folder):
    printed = apart(block("garak") + MORE)
    (report,) = folder.rglob("leak.report.jsonl")
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    done = [line for line in lines if line["entry_type"] == "attempt" and line["status"] == 2]
    assert len(done) == 6
    assert {line["probe_classname"] for line in done} == {"invert_fast.HiddenStates"}
    outputs = [line["outputs"][0] for line in done]
    assert outputs[0]["text"] == PASSWORD
    assert [(out["notes"]["certified"], out["notes"]["layer"]) for out in outputs] == [(1.0, "block:2")] * 6
    assert [line["detector_results"] for line in done] == [{"invert_fast.Recovered": [1.0]}] * 6
    refused, scores = printed.splitlines()[-2:]
    assert "holds no weights, expected huggingface" in refused
    assert scores == "[1.0, 0.5, 0.0]"
