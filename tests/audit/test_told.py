"""What the page says: only what the figures show, and nothing that text of others could act through."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from invert_fast.audit.advice import advice, nats, percent
from invert_fast.audit.page import page
from invert_fast.audit.summary import summary
from invert_fast.audit.verdict import verdict
from invert_fast.reports.boxed import name_of

from .reports import HOSTILE, report


def html_of(given) -> str:
    return page(given, summary(given))


VOID = {"meta", "link", "br", "img", "path", "circle", "polygon", "polyline", "rect"}


class Reader(HTMLParser):
    """Tags with their attributes, text outside of our own script and style, and whether what was opened is closed."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def test_hostile_text_is_shown_and_does_nothing():
    read = Reader(html_of(report()))
    assert read.open == []
    names = [tag for tag, _ in read.tags]
    assert (names.count("script"), names.count("style"), names.count("img")) == (1, 1, 0)
    assert not [key for _, attributes in read.tags for key in attributes if key.startswith("on")]
    assert not [
        v for _, a in read.tags for k, v in a.items() if k in ("src", "href") and not v.startswith(("#", "data:,"))
    ]
    assert [char for char in read.text if char != "\n" and name_of(char) and not char.isspace()] == []
    assert HOSTILE[0] in read.text
    assert "{{ 7*7 }}" in read.text


def test_references_inside_the_page_lead_somewhere():
    read = Reader(html_of(report()))
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in read.tags:
        named = (attributes.get("aria-labelledby") or "").split()
        if (attributes.get("href") or "").startswith("#"):
            named.append(attributes["href"][1:])
        assert {*named} <= {*ids}


def test_every_figure_is_told_in_words():
    read = Reader(html_of(report()))
    figures = [attributes for tag, attributes in read.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(figures) == 6  # two of each layer, kinds, and crowds
    assert [tag for tag, _ in read.tags].count("desc") == len(figures)
    assert "gaussian:0.1: 83.3 % of the tokens, +0.400 nats" in read.text


def test_a_wrong_certificate_is_said_first_and_loudly():
    bad = html_of(report(status="cccccc"))
    alarm = "tokens were certified and are wrong"
    assert alarm in bad
    assert bad.index(alarm) < bad.index("What to do about it")
    found = advice(summary(report(status="cccccc")))
    assert found[0].sentence.startswith("Do not rely on the certificates")
    assert alarm not in html_of(report())


def sentences(given) -> str:
    return " ".join(one.sentence for one in advice(summary(given)))


def test_advice_follows_from_the_figures():
    usual = sentences(report())
    assert "Handle undefended states as you would the text itself" in usual
    assert "gaussian:1 was the cheapest" in usual
    assert "at most 0.1 nats" not in usual, "all defences cost 0.4 nats here"
    assert "Handle undefended" not in sentences(report({"none": 2}))
    assert "Most texts did not come back whole" in sentences(report({"none": 2}))
    cheap = sentences(report({"gaussian:1": 3}, loss=10.0))
    assert "gaussian:1 is the strongest protection that costs at most 0.1 nats" in cheap
    assert "Nothing that was tried is sure to bring what comes back" in cheap
    weak = sentences(report({"gaussian:1": 6, "gaussian:0.1": 6}, loss=10.0))
    assert "Do not rely on any of these defences" in weak
    assert "expensive" in usual
    assert "expensive" not in sentences(report({"none": 2}))


def test_rows_that_are_left_out_are_no_cheap_protection():
    given = report({"gaussian:1": 6, "gaussian:0.1": 6, "drop:0.2": 1}, loss=10.0, predicted=4)
    assert "drop" not in sentences(given)


def test_a_secret_key_is_no_cheap_protection_either():
    """It costs nothing, and known rows undo it, which is not tried here."""
    given = report({"gaussian:1": 6, "gaussian:0.1": 6})
    renamed = {
        replace(cell, defence=cell.defence.replace("drop:0.2", "rotation:7")): r for cell, r in given.results.items()
    }
    for cell, rows in renamed.items():
        if cell.defence == "rotation:7":
            renamed[cell] = [
                {**row, "defence": "rotation:7", "right": 0, "loss": row["loss_undefended"]} for row in rows
            ]
    found = summary(replace(given, results=renamed))
    assert "rotation" not in " ".join(one.sentence for one in advice(found))
    assert "rotation" not in verdict(found)["lead"]


def test_every_sentence_has_a_figure():
    for given in (report(), report({"none": 0}), report({"none": 2}), report(status="cccccc")):
        assert all(re.search(r"\d", one.figure) for one in advice(summary(given)))


@pytest.mark.parametrize(
    ("value", "written"), [(0.0, "0 %"), (1.0, "100 %"), (0.0002, "< 0.1 %"), (0.99999, "> 99.9 %"), (0.5, "50.0 %")]
)
def test_nearly_all_is_not_all(value, written):
    assert percent(value) == written


def test_a_loss_of_nothing_has_no_sign():
    assert (nats(-0.0001), nats(-0.25), nats(0.25)) == ("0.000", "−0.250", "+0.250")
