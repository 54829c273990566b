"""Edits are told apart: each is named for what it is, and rows that were not edited so are not called that."""

from __future__ import annotations

import pytest

from invert_fast.diagnose.edits import CHEAP, GAPS, edit_of
from invert_fast.diagnose.trial import Trials

from ..mend.edits import edited, small

NAMED = {
    "one vector on all rows": "steering",
    "shuffled": "order",
    "two texts in turns": "mixed",
    "one row dropped": "gap",
    "two rows dropped": "gap",
    "noise on one row": None,
    "a vector on each row": None,
    "nothing": None,
}


@pytest.mark.parametrize("name", NAMED)
def test_an_edit_is_named(name):
    inverter = small("gpt2", 1)
    made = edited(name, inverter, seed=2)
    found = edit_of(Trials(inverter, made.rows, ("float32", "float32")), made.rows, (*CHEAP, *GAPS))
    assert (found and found[0]) == NAMED[name]
    assert found is None or found[2] > 0.9


def test_a_diagnosis_of_rows_that_are_missing_goes_straight_to_the_gap():
    inverter = small("gpt2", 1)
    rows = edited("nothing", inverter, seed=2).rows
    rows[5] = 0
    found = inverter.diagnose(rows)
    assert found.explained
    assert (found.command, found.options, found.edit) == ("mend", "--edit gap", "gap")
    assert found.tried == {}
    assert found.verdict.startswith("rows inside the text are missing: mended so, 100 %")
    assert "position 5 had no row" in found.notes[0]
    assert "Mend with" in found._repr_html_()
    assert "(mend with --edit gap)" in str(found)
