"""How states are read: what is refused, what is measured apart, and that options say the same as a `Reading`."""

from __future__ import annotations

import pytest
import torch

from invert_fast import InputError, Inverter, Reading
from invert_fast.cli.main import _parser
from invert_fast.cli.options import reading_of
from invert_fast.engine import tolerance_store
from invert_fast.lens.store import linear_name

from ..families import POSITIONS, make, texts
from ..readings import READINGS


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_the_options_of_the_command_line_say_the_same(reading):
    given = " ".join(reading.options()).split()
    args = _parser().parse_args(["invert", "--model", "m", "s.npy", "--output", "o", *given])
    assert reading_of(args) == reading


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"position_offset": -1}, "position offset -1"),
        ({"scale": 0}, "scale 0"),
        ({"scale": float("inf")}, "scale inf"),
        ({"scale": float("nan")}, "scale nan"),
        ({"scale": "units"}, "scale 'units'"),
    ],
)
def test_what_is_no_reading_is_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        Reading(**wrong)


def test_a_reading_that_this_model_cannot_have_is_refused():
    with pytest.raises(InputError, match=f"this model's {POSITIONS} positions"):
        Inverter(make("gpt2"), reading=Reading(position_offset=POSITIONS))
    with pytest.raises(InputError, match="token id 300 is outside"):
        Inverter(make("gpt2"), reading=Reading(prefix=(300,)))
    inv = Inverter(make("gpt2"), reading=Reading(position_offset=POSITIONS - 6, prefix=(1, 2)))
    with pytest.raises(InputError, match="a text has 7 rows, this model has 6 positions"):
        inv.invert(torch.zeros(5, 64))


def test_what_is_measured_under_one_reading_is_not_taken_for_another():
    decoders = [Inverter(make("gpt2"), reading=reading).decoder for reading in (Reading(), *READINGS.values())]
    names = {(tolerance_store.name(d, "float32", "float32"), linear_name(d, 0)) for d in decoders}
    compared = {d.reading.name for d in decoders}  # a factor and a prefix change no figure
    assert len(names) == len(compared) == 6


def test_our_pass_and_the_models_own_read_alike():
    ids = torch.tensor(texts(9, 9))
    for reading in READINGS.values():
        decoder = Inverter(make("gpt2"), layer=2, reading=reading).decoder
        assert torch.allclose(decoder.states(ids), decoder.capture(ids), rtol=1e-4, atol=1e-4)
        plain = Inverter(make("gpt2"), layer=2).decoder.capture(ids)
        assert reading.name == "" or not torch.allclose(decoder.capture(ids), plain, rtol=1e-2, atol=1e-2)
