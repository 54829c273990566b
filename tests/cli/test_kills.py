"""Commands that are stopped at a random moment, by kill -9 and by Ctrl-C, and then run to their end.

`bench/kill_campaign.py` does it fifty times each; docs/robustness.md has what came of it.
"""

from __future__ import annotations

import signal

import pytest
from kill_campaign import campaign

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no signals that stop a process")
@pytest.mark.parametrize(
    ("number", "names"),
    [(signal.SIGKILL, ["invert"]), (signal.SIGINT, ["capture", "logits extract"])],
    ids=["kill -9", "Ctrl-C"],
)
def test_commands_that_are_stopped_lose_nothing(number, names, tmp_path):
    rows = campaign(names, number, 1, 1, tmp_path / "kept.jsonl")
    assert {row["command"]: row["wrong"] for row in rows} == {name: [] for name in names}
    assert any(status not in (0, 1) for row in rows for status in row["stopped"]), "nothing was stopped"
    assert campaign(names, number, 1, 1, tmp_path / "kept.jsonl") == rows, "a campaign is not done twice"
