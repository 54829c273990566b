"""What is sent and told: on the host nothing, and on a device whatever it is, in its order."""

from __future__ import annotations

import torch

from invert_fast.model.transfer import HOST, picked, send_into, sent, told

META = torch.device("meta")


def test_on_the_host_nothing_is_copied():
    tables = torch.arange(3), torch.zeros(2, 2)
    assert all(a is b for a, b in zip(sent(HOST, *tables), tables, strict=True))
    assert all(a is b for a, b in zip(told(*tables), tables, strict=True))
    assert sent(HOST) == told() == ()


def test_what_is_sent_keeps_its_order_type_and_shape_and_what_is_there_stays():
    there = torch.zeros(5, device=META)
    tables = (
        torch.zeros(2, 3),
        torch.arange(4),
        there,
        torch.zeros(0, 7),
        torch.ones(2, dtype=torch.bool),
        torch.ones(()),
    )
    found = sent(META, *tables)
    assert found[2] is there
    assert all(one.device.type == "meta" for one in found)
    assert [(one.shape, one.dtype) for one in found] == [(one.shape, one.dtype) for one in tables]


def test_rows_go_where_they_are_wanted_and_places_are_looked_up():
    table = torch.zeros(3, 4)
    send_into(table[1, :2], torch.tensor([5, 6], dtype=torch.bfloat16))
    assert table[1].tolist() == [5, 6, 0, 0]
    assert picked(table, torch.tensor([1, 1]), torch.tensor([0, 1])).tolist() == [5, 6]
