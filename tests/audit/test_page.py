"""The page in a real browser: it asks for nothing, says nothing on the console, and works by keyboard.

`make test-page` installs what is needed: Chromium (or what CHROMIUM names), and axe-core in build/axe.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from invert_fast.audit.page import page as html_of
from invert_fast.audit.summary import summary

from .browser import Page, chromium, page
from .reports import HOSTILE, report

AXE = Path(__file__).resolve().parents[2] / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
BINARY = chromium()
pytestmark = pytest.mark.skipif(BINARY is None, reason="there is no Chromium: `make test-page` installs one")
LOOKS = [(390, False), (390, True), (1280, False), (1280, True)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = report(status="cccccc")  # with every part of the page, the alarm too
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(html_of(given, summary(given)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert BINARY is not None
    with page(BINARY, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def shown(tab: Page, file: Path) -> Page:
    """The page, newly loaded."""
    tab.look(1280)
    tab.open(file)
    return tab


def test_it_asks_for_nothing_and_says_nothing(shown, file):
    shown.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert {*shown.requests} == {file.resolve().as_uri()}
    assert shown.said == []


def test_recovered_markup_is_text(shown):
    assert shown.run("document.scripts.length") == 1
    assert shown.run("document.images.length") == 0
    told = shown.run("document.querySelector('#examples').textContent")
    assert HOSTILE[0] in told
    assert HOSTILE[3] in told


def test_figures_are_there_and_have_names(shown):
    sizes = shown.run(
        "[...document.querySelectorAll('svg[role=img]')].filter(one => !one.closest('details'))"
        ".map(one => [one.getBoundingClientRect().height, one.querySelector('title').textContent.length])"
    )
    assert len(sizes) == 4
    assert all(height > 40 and title for height, title in sizes)


def test_tables_are_sorted_by_keyboard(shown):
    column = "[...document.querySelectorAll('table.cells tbody tr')].map(row => +row.cells[5].dataset.v)"
    sorts = "document.querySelectorAll('table.cells thead th')[5].getAttribute('aria-sort')"
    before = shown.run(column)
    shown.run("document.querySelectorAll('table.cells thead button')[4].focus()")
    shown.press("Tab", 9)
    assert shown.run("document.activeElement.closest('th').cellIndex") == 5
    shown.press("Enter", 13, "\r")
    assert shown.run(column) == sorted(before) != before
    assert shown.run(sorts) == "ascending"
    shown.press(" ", 32, " ")
    assert shown.run(column) == sorted(before, reverse=True)
    assert shown.run(sorts) == "descending"
    others = "document.querySelectorAll('table.cells thead th:not([aria-sort=none])').length"
    assert shown.run(others) == 1


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_nothing_is_cut_off(tab, file, width, dark):
    tab.look(width, dark=dark)
    tab.open(file)
    tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.run("document.documentElement.scrollWidth") <= width
    light = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0) > 380")
    assert light != dark


@pytest.mark.skipif(not AXE.exists(), reason=f"there is no {AXE.name} in build/axe: `make test-page` fetches it")
@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_axe_finds_nothing(tab, file, width, dark):
    tab.look(width, dark=dark)
    tab.open(file)
    tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    tab.run(AXE.read_text(encoding="utf-8") + "; 0")
    found = tab.run(
        "axe.run().then(r => r.violations.map(v => v.id + ': ' + v.nodes.slice(0, 3)"
        ".map(n => n.html.slice(0, 160) + ' ' + n.failureSummary).join(' | ')))"
    )
    assert found == []
