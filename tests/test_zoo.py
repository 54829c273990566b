"""What docs/families.md says of every family holds: its path, what is exact; and nothing certified is wrong."""

from __future__ import annotations

import pytest

from . import matrix, zoo

WRITTEN = matrix.written()
LENGTHS = (20, 1, 9)  # half of those that the table is of: one still is longer than the window of 16


def test_the_table_has_a_row_for_every_family():
    assert set(WRITTEN) == set(zoo.FAMILIES)


def test_at_least_75_families_are_exact_and_certified():
    assert sum(cells[1] == cells[2] == "all" for cells in WRITTEN.values()) >= 75


@pytest.mark.slow
@pytest.mark.usefixtures("small_fits")
@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_the_table_says_what_comes_of_a_family(family):
    for layer, said in zip(matrix.LAYERS, (WRITTEN[family][:3], WRITTEN[family][4:7]), strict=True):
        row = matrix.measured(family, layer, LENGTHS)
        assert row.wrong == 0
        assert row.cells()[:3] == said
