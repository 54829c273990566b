"""Results that are gone on with: every line of ours, or nothing is."""

from __future__ import annotations

import json

import pytest

from invert_fast import InputError
from invert_fast.storage.recovered import read_recovered, resume

LENGTHS = [3, 2]
WHOLE = {"index": 0, "token_ids": [1, 2, 3], "text": "a"}


def test_what_is_there_is_known_and_half_a_line_is_cut_off(tmp_path):
    path = tmp_path / "o.jsonl"
    line = json.dumps(WHOLE) + "\n"
    path.write_text(line + line[:-9])
    assert resume(path, LENGTHS) == {0}
    assert path.read_text() == line
    assert [row["index"] for row in read_recovered(path)] == [0]


@pytest.mark.parametrize(
    "other",
    [
        {"index": True},
        {"index": 0.0},
        {"index": "0"},
        {"token_ids": "abc"},
        {"token_ids": {"a": 1, "b": 2, "c": 3}},
        {"token_ids": [1, 2, "3"]},
        {"token_ids": [1, 2, 3.0]},
        {"token_ids": [[1], [2], [3]]},
    ],
    ids=repr,
)
def test_a_line_that_only_looks_like_ours_is_refused(tmp_path, other):
    """A text that is taken for recovered is not recovered any more."""
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps(WHOLE | other) + "\n")
    before = path.read_bytes()
    for read in (read_recovered, lambda path: resume(path, LENGTHS)):
        with pytest.raises(InputError, match="line 1: not a recovered text"):
            read(path)
    assert path.read_bytes() == before
