"""Every name of a layer means one place, and a name that means none is refused."""

from __future__ import annotations

import pytest
import torch

from invert_fast import InputError, Inverter
from invert_fast.model.decoder import Decoder
from invert_fast.model.layer import Layer

from ..families import BLOCKS, LAYERS, build, exact, make, texts
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


def test_where_hidden_states_end_before_the_norm_their_last_entry_is_of_the_last_block():
    model = build("llama")
    model.config.tie_last_hidden_states = False
    ids = torch.tensor(texts(9))
    with torch.no_grad():
        output = model.model(ids, output_hidden_states=True)
    assert not torch.equal(output.hidden_states[-1], output.last_hidden_state)
    inverter = Inverter(model)
    assert inverter.decoder.layer.name == f"block:{BLOCKS - 1}"
    torch.testing.assert_close(inverter.decoder.capture(ids), output.hidden_states[-1], rtol=0, atol=0)
    assert exact(inverter.invert(output), ids.tolist())
    normed = Inverter(model, layer="final_norm")
    assert exact(normed.invert(output), ids.tolist())
    with pytest.raises(InputError, match="last_hidden_state"):
        normed.invert(output.hidden_states)
