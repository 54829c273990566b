"""What a model or `generate` returns goes in as it is, whatever layer the inverter is of."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from invert_fast import InputError
from invert_fast.intake.texts import texts_of
from invert_fast.model.layer import Layer

from ..families import BLOCKS, WIDTH, exact, inverter, make, texts

MODEL, INVERTER = make("llama"), inverter("llama")
IDS = torch.tensor(texts(6, 6))
SHORT = torch.tensor([[0, 0, 0, 9, 7, 30], IDS[1].tolist()])  # the first one padded on the left
MASK = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])


def generated(ids=IDS, **options):
    wanted = {"output_hidden_states": True, "return_dict_in_generate": True, "do_sample": False}
    return MODEL.generate(ids, max_new_tokens=5, eos_token_id=None, pad_token_id=0, **{**wanted, **options})


def same(found, wanted) -> None:
    assert len(found) == len(wanted)
    assert all(torch.equal(s.hidden, rows) for s, rows in zip(found, wanted, strict=True))


def refused(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert "expected" in message
    return message


@pytest.mark.parametrize("layer", [0, 1, -2, -1, "block:1"])
def test_the_tuple_of_layers_and_the_output_that_has_it(layer):
    output, where = MODEL(IDS, output_hidden_states=True), Layer(layer, BLOCKS)
    wanted = list(output.hidden_states[{"block:1": 2}.get(layer, layer)])
    for given in (output, output.hidden_states, dict(output), [output], [output.hidden_states]):
        same(texts_of(given, where), wanted)
    same(texts_of([output, output], where), wanted * 2)
    assert {s.layer for s in texts_of(output, where)} == {where.name}


def test_what_a_model_returns_is_inverted():
    output = MODEL(IDS, output_hidden_states=True)
    assert exact(INVERTER.invert(output), IDS.tolist())
    assert exact(INVERTER.invert([output.hidden_states, output]), IDS.tolist() * 2)


def test_last_hidden_state_is_the_final_norms():
    output = MODEL.base_model(IDS)
    assert exact(INVERTER.invert(output), IDS.tolist())
    assert "output_hidden_states" in refused(lambda: texts_of(output, Layer(1, BLOCKS)))


def test_a_batch_padded_on_the_right():
    ids, mask = SHORT.flip(1), MASK.flip(1)
    output = MODEL(ids, attention_mask=mask, output_hidden_states=True)
    assert exact(INVERTER.invert(output, attention_mask=mask), [ids[0, :3].tolist(), ids[1].tolist()])


def test_what_generate_returns_less_its_last_token():
    output = generated()
    assert exact(INVERTER.invert(output), output.sequences[:, :-1].tolist())
    whole = MODEL(output.sequences[:, :-1], output_hidden_states=True).hidden_states
    for layer in (0, 2, -1):
        for states, rows in zip(texts_of(output.hidden_states, Layer(layer, BLOCKS)), whole[layer], strict=True):
            torch.testing.assert_close(states.hidden, rows, rtol=1e-4, atol=1e-4)


def test_what_generate_made_of_prompts_padded_on_the_left():
    output = generated(SHORT, attention_mask=MASK)
    found = INVERTER.invert(output, attention_mask=MASK)
    assert exact(found, [output.sequences[0, 3:-1].tolist(), output.sequences[1, :-1].tolist()])


def test_several_sampled_sequences_of_a_prompt():
    torch.manual_seed(0)
    output = generated(SHORT, attention_mask=MASK, do_sample=True, num_return_sequences=2)
    cut = [3, 3, 0, 0]
    truth = [row[skip:-1].tolist() for row, skip in zip(output.sequences, cut, strict=True)]
    assert exact(INVERTER.invert(output, attention_mask=MASK), truth)


@pytest.mark.parametrize("kept", [1, 3])
def test_beams_are_followed_from_step_to_step(kept):
    output = generated(SHORT, attention_mask=MASK, num_beams=3, num_return_sequences=kept)
    assert (output.beam_indices[:, 1:] != output.beam_indices[:, :1]).any(), "no beam ever moved: this shows nothing"
    cut = [3] * kept + [0] * kept
    truth = [row[skip:-1].tolist() for row, skip in zip(output.sequences, cut, strict=True)]
    assert exact(INVERTER.invert(output, attention_mask=MASK), truth)


def test_the_raw_output_of_the_last_block_is_in_no_output():
    output = MODEL(IDS, output_hidden_states=True)
    message = refused(lambda: texts_of(output, Layer(f"block:{BLOCKS - 1}", BLOCKS)))
    assert "forward hook" in message


def test_outputs_without_states_say_what_to_do():
    inv, output = INVERTER, MODEL(IDS)
    assert "output_hidden_states=True" in refused(lambda: inv.invert(output))
    assert "generate" in refused(lambda: inv.invert({"sequences": IDS}))
    assert "5 entries" in refused(lambda: inv.invert((torch.zeros(1, 2, WIDTH),) * 5))
    seq2seq = namedtuple("Output", "decoder_hidden_states")((torch.zeros(1, 2, WIDTH),))
    assert "encoder-decoder" in refused(lambda: inv.invert(seq2seq))


def test_masks_and_steps_that_cannot_be():
    output, inv = generated(), INVERTER
    assert "rows of the prompt" in refused(lambda: inv.invert(output, attention_mask=torch.ones(2, 4)))
    steps = list(output.hidden_states)
    steps[1] = tuple(h[:1] for h in steps[1])
    assert "a generated step" in refused(lambda: inv.invert(tuple(steps)))
    assert "beam_indices" in refused(
        lambda: inv.invert({"hidden_states": output.hidden_states, "beam_indices": torch.zeros(2, 2).long()})
    )
