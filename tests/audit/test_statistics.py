"""Intervals against published values, and against what they promise: to hold the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from invert_fast.audit.statistics import bootstrap, share, wilson


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 29, 0.0061, 0.1718),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_is_the_published_interval(hits, of, low, high):
    found = wilson(hits, of)
    assert found.value == hits / of
    assert (round(found.low, 4), round(found.high, 4)) == pytest.approx((low, high), abs=1.1e-4)


def test_of_nothing_nothing_is_known():
    assert wilson(0, 0)[1:] == (0.0, 1.0)
    assert all(map(math.isnan, bootstrap([])))
    assert math.isnan(share([0], [0]).value)


def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say():
    random, held = np.random.default_rng(1), 0
    for _ in range(200):
        found = bootstrap(random.exponential(2.0, 80))
        held += found.low <= 2.0 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_a_ratio_is_that_of_the_sums_and_the_same_again():
    right, tokens = [10, 3, 0, 7], [10, 6, 4, 20]
    found = share(right, tokens)
    assert found.value == 0.5
    assert found.low < 0.5 < found.high
    assert found == share(right, tokens)


def test_texts_that_are_all_alike_do_not_make_it_certain():
    assert share([5, 9, 4], [5, 9, 4]) == wilson(3, 3)
    assert share([0, 0], [5, 9]) == wilson(0, 2)
