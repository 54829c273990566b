"""A model in another precision without a second copy of it: the same states, and the user's model as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from invert_fast import InputError, Inverter
from invert_fast.model.decoder import capture
from invert_fast.model.numerics import model_in

from ..families import ON_EVERY_PROCESSOR, build, make, texts

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("family", ON_EVERY_PROCESSOR)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_states_are_those_of_a_converted_model(family, precision):
    inv, ids = Inverter(make(family)), torch.tensor(texts(12, 12))
    converted = copy.deepcopy(inv.decoder.model).to(getattr(torch, precision))
    expected = capture(converted, inv.decoder.layer, ids).float()
    found = capture(model_in(inv.decoder.model, precision), inv.decoder.layer, ids)
    exact = inv.decoder.capture(ids)
    noise = (expected - exact).norm(dim=-1)
    # the same roundings of the same weights; rotation tables may stay in fp32, which makes a little less noise
    assert ((found.float() - expected).norm(dim=-1) <= 1.5 * noise.max()).all()
    assert (found.float() - exact).norm(dim=-1).median() > 0.3 * noise.median(), "as if nothing had been rounded"


def test_a_model_in_bf16_gives_the_states_of_the_same_weights_in_fp32():
    exactly = build("llama")
    exactly.load_state_dict({k: v.bfloat16().float() for k, v in exactly.state_dict().items()})
    half = copy.deepcopy(exactly).to(torch.bfloat16)
    for ours, theirs in zip(half.modules(), exactly.modules(), strict=True):  # as `from_pretrained` leaves them
        for name, angles in theirs.named_buffers(recurse=False):
            setattr(ours, name, angles)
    layer, ids = Inverter(exactly).decoder.layer, torch.tensor(texts(12, 12))
    found = capture(model_in(half, "float32"), layer, ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, capture(exactly, layer, ids), rtol=1e-4, atol=1e-5)


def test_a_padding_token_far_into_the_vocabulary_is_no_hindrance():
    model = build("llama")
    embedding, last = model.get_input_embeddings(), model.config.vocab_size - 1
    embedding.padding_idx = last
    inv, ids = Inverter(model), torch.tensor([[1, 2, 3], [1, last, 2]])
    found = capture(model_in(model, "bfloat16"), inv.decoder.layer, ids)
    assert embedding.padding_idx == last
    embedding.padding_idx = None
    assert torch.equal(found, capture(model_in(model, "bfloat16"), inv.decoder.layer, ids))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_int8_weights_are_rounded_by_output_channel(family):
    model, ids = build(family), torch.tensor(texts(12, 12))
    layer = Inverter(model).decoder.layer
    rounded = copy.deepcopy(model)
    for module in rounded.base_model.modules():
        kind = type(module).__name__
        if kind in ("Linear", "Conv1D"):
            weight = module.weight.data if kind == "Linear" else module.weight.data.T
            for channel in weight:
                step = channel.abs().max() / 127
                channel.copy_((channel / step).round() * step)
    torch.testing.assert_close(
        capture(model_in(model, "int8"), layer, ids), capture(rounded, layer, ids), rtol=1e-5, atol=1e-5
    )


def test_the_users_model_is_left_as_it_is():
    model = build("llama")
    before = {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    made = model_in(model, "bfloat16")
    made(input_ids=torch.tensor(texts(5)))
    assert {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()} == before
    assert {p.data_ptr() for p in made.parameters()} == {pointer for pointer, _ in before.values()}, "a copy was kept"
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_weights_come_back_after_an_error():
    model = build("llama")
    made = model_in(model, "bfloat16")
    with pytest.raises((IndexError, RuntimeError)):
        made(input_ids=torch.tensor([[10**6]]))
    assert all(p.dtype == torch.float32 for p in made.parameters())


def test_an_unknown_precision_is_named():
    with pytest.raises(InputError, match=r"'int4'.*int8"):
        model_in(build("llama"), "int4")


def test_a_model_that_was_converted_is_not_converted_again():
    made = model_in(build("llama"), "float32")
    with pytest.raises(ValueError, match="in another precision already"):
        model_in(made, "bfloat16")
