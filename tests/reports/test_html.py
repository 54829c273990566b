"""What a notebook shows of hostile text: nothing acts, nothing hides, and no mark is a colour alone."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invert_fast import Inverter, Recovery, Status
from invert_fast.diagnose.hypotheses import LAYER, Hypothesis
from invert_fast.diagnose.report import Diagnosis, Tried
from invert_fast.reports.boxed import BOX, attribute, boxed, name_of
from invert_fast.reports.html import KINDS, TOKENS_MOST, WRONG
from invert_fast.reports.pieces import pieces
from invert_fast.reports.score import score
from invert_fast.types import Spelling

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)> \x1b[31mred\x07\x00 \u202egnp.exe\u2066 a\u200bb\u00ad "
    "\U000e0041 \ufe0f\u0301\u0301\u0301\u0301 \u3164 &lt; ' \" 日本 👩\u200d👧 \ud800 \r\n\t"
)
ALLOWED = {
    "div",
    "span",
    "bdi",
    "sup",
    "small",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "br",
    "p",
    "code",
    "ul",
    "li",
}


class Reader(HTMLParser):
    """The tags, attributes and text of some HTML, as a browser reads them."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = self.titles = ""
        self.open = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open += tag != "br"
        for name, value in attrs:
            self.titles += value or "" if name == "title" else ""

    def handle_endtag(self, tag):
        self.open -= 1

    def handle_data(self, data):
        self.text += data


def harmless(html: str) -> str:
    """The text of HTML in which only our own tags stand, and no character that acts or hides."""
    read = Reader(html)
    assert set(read.tags) <= ALLOWED
    assert read.attributes <= {"style", "title", "dir"}
    assert read.open == 0, "a tag was left open"
    assert [char for char in read.text + read.titles if name_of(char)] == []
    return f"{read.text} {read.titles}"


class Chars:
    """A tokenizer whose tokens are characters, whatever they are."""

    def decode(self, ids, **options):
        return "".join(map(chr, ids))


def recovery(text: str, status: list[int] | None = None, spelt: bool = True) -> Recovery:
    ids = np.array([ord(char) for char in text], np.int64)
    zeros, none = np.zeros(len(ids)), np.zeros(len(ids), np.int64)
    marks = np.array(status if status is not None else none, np.int8)
    return Recovery(ids, zeros, zeros, zeros, marks, none, none, text, spelling=Spelling(Chars()) if spelt else None)


@given(st.text(max_size=40))
def test_no_text_acts_or_hides(text):
    inside = harmless(boxed(text))
    assert harmless(f'<p title="{attribute(text)}">x</p>')
    visible = [char for char in text if name_of(char) is None and not name_of(char, 9)]
    assert all(char in inside for char in visible)


@pytest.mark.parametrize("spelt", [True, False], ids=["by token", "without a tokenizer"])
def test_hostile_text_is_shown_by_name(spelt):
    inside = harmless(recovery(HOSTILE, spelt=spelt)._repr_html_())
    names = ("x1b", "x07", "x00", "u202e", "u2066", "u200b", "xad", "U000e0041", "ufe0f", "u3164", "ud800", "n", "t")
    for name in names:
        assert f"\\{name}" in inside
    assert "\u0301" * 3 not in re.sub(r"\s", "", inside), "marks are not heaped"
    assert "<script>alert(1)</script>" in inside, "all of it is shown, as text"
    assert "日" in inside
    compared = score([recovery(HOSTILE, spelt=spelt)], [(None, HOSTILE[::-1])])
    assert "<script>" in harmless(compared._repr_html_())
    assert boxed("\\u202e") == "\\u202e", "a name in the text itself stands in no box"
    assert BOX in boxed("\u202e")


def test_every_kind_has_a_line_and_a_sign_of_its_own():
    every = [Status.CERTIFIED, Status.BEST_MATCH, Status.AMBIGUOUS, Status.NOT_FOUND, Status.AFTER_FAILURE]
    found = replace(recovery("abcde", [*map(int, every)]), alternatives={2: [ord("z"), ord("<")]})
    html = found._repr_html_()
    assert "“z”, “<”" in harmless(html)
    lines = [re.sub("#[0-9a-f]{6}", "", line) for _, line, _ in KINDS.values()]
    signs = [sign for sign, _, _ in KINDS.values()]
    assert len(set(lines)) == len(set(signs)) == len(KINDS) == len(every) + 1
    for status in every:
        sign, line, _ = KINDS[status.label]
        assert line in html
        assert sign in html
        assert f": {status.label};" in html
    assert KINDS[WRONG][1] not in html


def test_wrong_tokens_are_struck_out_with_the_right_ones():
    compared = score([recovery("abxde")], [([ord(char) for char in "abcdef"], "abcdef")])
    assert (compared.token_accuracy, compared.exact_match, compared.certified) == (4 / 6, 0.0, 1.0)
    html = compared._repr_html_()
    assert html.count(KINDS[WRONG][1]) == 2, "the token and the legend"
    text = harmless(html)
    assert "(was “c”)" in text
    assert "1 more tokens of the reference were not recovered" in text
    longer = score([recovery("abc")], [([ord("a")], "a")])
    assert longer.texts[0].wrong == {1: None, 2: None}
    assert "(was nothing)" in harmless(longer._repr_html_())


def test_long_texts_are_cut_and_say_so():
    html = recovery("a" * (TOKENS_MOST + 7))._repr_html_()
    assert "7 more tokens are not shown" in harmless(html)


@pytest.fixture(scope="module")
def bundled() -> Inverter:
    return Inverter.from_pretrained("bundled")


def test_pieces_are_the_text_and_say_which_tokens_they_are_of(bundled):
    for text in ("The password is hunter2.", "日本 👩\u200d👧 naïve  \n\tüber", " leading", "�"):
        ids = bundled.encode(text)
        found = pieces(ids, Spelling(bundled.decoder.tokenizer))
        assert "".join(piece.text for piece in found) == bundled.decoder.decode(ids)
        assert [piece.start for piece in found] == [0, *(piece.stop for piece in found)][:-1]
        assert found[-1].stop == len(ids)
    cut = bundled.encode("日本")[:-1]
    assert pieces(cut, Spelling(bundled.decoder.tokenizer))[-1].stop == len(cut), "an unfinished character is shown too"


def test_a_recovery_shows_itself_and_leaves_the_tokenizer_out_of_its_pickle(bundled):
    (found,) = bundled.invert(bundled.capture(["The password is hunter2."]))
    assert "9 of 9 tokens certified" in found._repr_html_()
    assert copy.deepcopy(found).spelling is found.spelling
    sent = pickle.dumps(found)
    assert len(sent) < 10_000
    there = pickle.loads(sent)
    assert there.text in harmless(there._repr_html_())
    with pytest.raises(ValueError, match="1 recoveries came with 2 texts"):
        bundled.score([found], ["a", "b"])


def test_a_diagnosis_shows_its_verdict_and_what_it_tried():
    supposed = Hypothesis("block:3")
    found = Diagnosis(
        "final_norm", 9, supposed, 1.0, {LAYER: Tried(supposed, 1e-6, 1.0)}, ("a <b>note</b>",), recovery("ab")
    )
    text = harmless(found._repr_html_())
    for part in (
        "read so, 100 % of the first 9 rows certify",
        "--layer block:3",
        "another layer",
        "a <b>note</b>",
        "2 of 2 tokens",
    ):
        assert part in text
    assert "none of the following explains it" in harmless(Diagnosis("final_norm", 9, tried=found.tried)._repr_html_())
