"""What docs/scale.md says: its commands exist, and its figures follow from those that they are said to follow from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from invert_fast.cli.main import _parser

DOCUMENT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
ROWS = {
    row[0]: row[1:] for row in (re.split(r" *\| *", line)[1:-1] for line in DOCUMENT.splitlines() if line[:2] == "| ")
}
MODELS = ("the bundled model", "Gemma-3-270M", "a Llama-3-8B shape, bf16")


def numbers(cells: list[str]) -> list[float]:
    return [float(cell.replace(",", "")) for cell in cells]


@pytest.mark.parametrize("command", re.findall(r"^invert-fast (.*)$", DOCUMENT, re.MULTILINE))
def test_the_commands_exist(command):
    _parser().parse_args(command.split())


def test_the_figures_follow_from_the_rates():
    widths, rates = zip(*(numbers([ROWS[model][0], ROWS[model][2]]) for model in MODELS), strict=True)
    hours = [1e9 / rate / 3600 for rate in rates]
    for name, exact in {
        "hours on that machine, 10⁹ / rate / 3,600": hours,
        "on 8 of them, at best": [hour / 8 for hour in hours],
        "states on disk in bf16, 10⁹ × 2 D bytes, TB": [2e9 * width / 1e12 for width in widths],
        "states on disk in fp32, 10⁹ × 4 D bytes, TB": [4e9 * width / 1e12 for width in widths],
        "read for that rate in bf16, rate × 2 D, MB/s": [
            2 * w * rate / 1e6 for w, rate in zip(widths, rates, strict=True)
        ],
    }.items():
        assert numbers(ROWS[name]) == pytest.approx(exact, rel=0.08 if "read" in name else 0.01), name
