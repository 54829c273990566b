"""Every name of a layer means one place, and a name that means none is refused."""

from __future__ import annotations

import pytest

from invert_fast import InputError
from invert_fast.model.decoder import Decoder
from invert_fast.model.layer import Layer

from ..families import BLOCKS, LAYERS, make
from .refusals import one_line


def test_every_name_of_a_layer_has_one_canonical_form():
    for index in range(BLOCKS + 1):
        names = {index, str(index), f" {index} ", f"+{index}", index - BLOCKS - 1, str(index - BLOCKS - 1)}
        canonical = "embeddings" if not index else "final_norm" if index == BLOCKS else f"block:{index - 1}"
        assert {Layer(name, BLOCKS).name for name in {*names, canonical}} == {canonical}
    last = Layer(f"block:{BLOCKS - 1}", BLOCKS)
    assert (last.depth, last.normed, last.name) == (BLOCKS, False, f"block:{BLOCKS - 1}")
    assert [name for name in LAYERS if Layer(name, BLOCKS).near_head] == [-1, BLOCKS, last.name, "final_norm"]


@pytest.mark.parametrize(
    "name",
    [BLOCKS + 1, -BLOCKS - 2, f"block:{BLOCKS}", "block:-1", "block:", "block:x", "", "norm", "1.0", 1.5, None, "--1"],
)
def test_layers_that_are_not_there_are_refused_by_name(name):
    with pytest.raises(InputError) as error:
        Decoder(make("gpt2"), layer=name)
    assert f"'{name}'" in one_line(error)
    assert f"block:{BLOCKS - 1}" in one_line(error)
