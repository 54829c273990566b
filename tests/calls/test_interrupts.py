"""Ctrl-C in the midst of something that may fail is Ctrl-C, and no reason to go on in another way."""

from __future__ import annotations

import pytest
import torch

from invert_fast import Inverter
from invert_fast.calls.interrupts import raise_interrupt
from invert_fast.lens.files import read_or_warn
from invert_fast.model import trial
from invert_fast.model.program import record

from ..families import build


def interrupted(*_: object) -> None:
    """As an import that was interrupted while a class was made, before Python 3.12."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise RuntimeError("Error calling __set_name__ on an instance in a class") from error


def test_a_pass_that_was_being_recorded():
    with pytest.raises(KeyboardInterrupt):
        record(interrupted, lambda B, N: [torch.zeros(B, N)])


@pytest.mark.parametrize("part", ["structural_twin", "trouble_of_ours"])
def test_a_model_that_was_being_tried(part, monkeypatch):
    """It would run by its own forward pass from then on, and round otherwise."""
    monkeypatch.setattr(trial, part, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Inverter(build("gpt2"))


def test_an_entry_of_the_cache_that_was_being_read(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        read_or_warn(tmp_path, interrupted, "fitting it again")


@pytest.mark.parametrize("error", [RuntimeError("its own"), ValueError("of nothing")])
def test_other_errors_are_none(error):
    error.__cause__ = OSError("before it")
    raise_interrupt(error)


def test_errors_that_came_of_each_other_end():
    error = RuntimeError("a")
    error.__cause__ = ValueError("b")
    error.__cause__.__cause__ = error
    raise_interrupt(error)
