"""Reading ahead: everything in order, no more than was asked for, errors in their place, and an end to it."""

from __future__ import annotations

import threading
import time

import pytest

from invert_fast.storage.ahead import Ahead


def settled(count: list[int]) -> int:
    """How many were asked for, once no more are."""
    before = -1
    while before != len(count):
        before = len(count)
        time.sleep(0.05)
    return before


def counting(asked: list[int], items: range):
    for item in items:
        asked.append(item)
        yield item


@pytest.mark.parametrize("most", [1, 5, 1000])
def test_all_items_come_in_order(most):
    assert [*Ahead(range(50), lambda item: 1, most)] == [*range(50)]
    assert [*Ahead([], lambda item: 1, most)] == []


def test_it_reads_up_to_what_it_may_hold_and_goes_on_as_that_is_taken():
    asked: list[int] = []
    ahead = Ahead(counting(asked, range(100)), lambda item: 10, 35)
    assert settled(asked) == 5, "four are held, and the fifth waits"
    assert next(ahead) == 0
    assert settled(asked) == 6
    ahead.close()


def test_one_larger_than_all_it_may_hold_comes_too():
    assert [*Ahead([7, 9], lambda item: 1000, 1)] == [7, 9]


def test_an_error_comes_behind_the_items_before_it_and_once():
    def items():
        yield 1
        raise ValueError("torn")

    ahead = Ahead(items(), lambda item: 1, 10)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="torn"):
        next(ahead)
    assert next(ahead, None) is None


def test_closed_it_asks_for_nothing_more_and_leaves_no_thread():
    asked: list[int] = []
    ahead = Ahead(counting(asked, range(1000)), lambda item: 1, 3)
    next(ahead)
    ahead.close()
    count, own = len(asked), ahead._thread
    assert own not in threading.enumerate()
    assert next(ahead, None) is None
    assert settled(asked) == count < 1000
