"""What is shown of an explanation: columns line up, nothing acts, and a page is whole by itself."""

from __future__ import annotations

import re

import numpy as np

from invert_fast import Recovery, Status
from invert_fast.cli import explain as command
from invert_fast.cli.report import columns, cut, padded, table
from invert_fast.explain import Explanation, Position, Rival, reason
from invert_fast.explain.page import HEADER, said, whole_page
from invert_fast.types import Spelling

from ..reports.test_html import HOSTILE, Chars, harmless

WIDE = ["日本語", "한국", "ｆｕｌｌ", "e\u0301a\u0300", "plain", "👩", "\u1112\u1161\u11ab"]


def explanation(words: list[str]) -> Explanation:
    """Positions whose tokens are these words, the last of them not found."""
    spoilt = "".join(words).encode("utf-8", "replace").decode()
    ids = np.arange(len(words))
    zeros = np.zeros(len(words))
    status = np.array([Status.CERTIFIED] * (len(words) - 1) + [Status.NOT_FOUND], np.int8)
    recovery = Recovery(ids, zeros, zeros, zeros, status, ids, ids, spoilt, spelling=Spelling(Chars()))
    positions = tuple(
        Position(
            *(t, t, word, t + (t % 2), word, t, t or None, 0.25 if t else None),
            *(1e-6, 1e-3, 1e-4, 0.1, (Rival(7, word, 0.5), Rival(8, None, 0.6)), t, word),
            *(Status(int(status[t])), 1e-9, reason.ALONE if status[t] == 0 else reason.NOWHERE),
        )
        for t, word in enumerate(words)
    )
    return Explanation(positions, recovery, "final_norm", "float32", "float32", "linear")


def test_wide_and_combining_characters_line_up():
    assert [columns(word) for word in WIDE] == [6, 4, 8, 2, 5, 2, 2]
    lines = table(["a", "b", "c"], [[word, word, "x"] for word in WIDE], left=(0, 2)).splitlines()
    ends = {columns(line) for line in lines[1:]}
    assert ends == {8 + 2 + 8 + 2 + 1}
    assert lines[2].startswith("日本語    ")
    assert [columns(cut(word, 4)) for word in WIDE] == [3, 4, 3, 2, 4, 2, 2]
    assert padded("日", 4, right=True) == "  日"
    shown = command.show(explanation(WIDE))
    rows = [line for line in shown.splitlines() if re.match(r"\s*\d+  “", line)]
    starts = {columns(row[: row.index("certified")]) for row in rows if "certified" in row}
    assert len(rows) == len(WIDE)
    assert len(starts) == 1, "the last column begins at one place"
    assert "(1) fits, and no other token can come as near: 6 positions" in shown
    assert "(2) no token tried reproduces the state: 1 position\n" in shown


def test_hostile_tokens_neither_act_nor_break_the_table():
    shown = command.show(explanation([HOSTILE[:60], "\n\x1b[2J", "\u202eabc"]))
    assert not set(shown) & {"\x1b", "\u202e", "\x07"}
    assert len(re.findall(r"^ ?\d  “", shown, re.MULTILINE)) == 3
    inside = harmless(explanation([HOSTILE, "<b>", "\u202eabc"])._repr_html_())
    assert "<script>alert(1)</script>" in inside
    assert "\\u202e" in inside
    for name in HEADER:
        assert name in inside


def test_a_page_asks_for_nothing_and_runs_nothing():
    page = whole_page("<model> & co", [explanation(["<script>", "b"]), explanation(["c"])])
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in page
    assert "<title>&lt;model&gt; &amp; co</title>" in page
    assert not re.search(r"<script|<img|<link|<iframe|src=|href=|url\(", page, re.IGNORECASE)


def test_what_is_no_text_by_itself_is_its_number():
    assert [said(9, token) for token in ("a", " a", "", None, "\ufffd", "a\ufffd")] == ["“a”", "“ a”", *["[9]"] * 4]
