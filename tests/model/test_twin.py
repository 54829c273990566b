"""The structural twin equals the model's own forward pass at every layer, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from invert_fast import Inverter, PriorOrder
from invert_fast.model.decoder import Decoder
from invert_fast.model.prefix import PrefixCall

from ..families import BLOCKS, FAMILIES, LAYERS, MORE, build, make, texts

families = pytest.mark.parametrize("family", FAMILIES)
ids = torch.tensor(texts(33, 33))


def twin(decoder: Decoder, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    return decoder.run(decoder.embed(ids), positions, PrefixCall(causal=True))


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == BLOCKS)


def hooks_of(model: nn.Module) -> list[list]:
    return [[*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for m in model.modules()]


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_twin_equals_the_models_own_forward_pass_at_every_layer(family, layer):
    decoder = Decoder(make(family), layer=layer)
    torch.testing.assert_close(twin(decoder, ids), decoder.capture(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_block_outputs_are_what_a_hook_on_the_block_sees(family):
    model, seen = make(family), []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks_of(model)
    ]
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert not torch.allclose(seen[-1], hidden[-1], rtol=1e-2), "the last entry has the final norm"
    for k, expected in enumerate(seen):
        decoder = Decoder(model, layer=f"block:{k}")
        torch.testing.assert_close(decoder.capture(ids), expected, rtol=0, atol=0)
        torch.testing.assert_close(twin(decoder, ids), expected, rtol=1e-5, atol=1e-5)
    for index, expected in enumerate(hidden):
        torch.testing.assert_close(Decoder(model, layer=index).capture(ids), expected, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_models_own_attention_implementation_does_not_matter(implementation):
    model = build("llama")
    model.set_attn_implementation(implementation)
    decoder = Decoder(model)
    torch.testing.assert_close(twin(decoder, ids), decoder.capture(ids), rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == implementation


@families
@pytest.mark.usefixtures("small_fits")
def test_the_model_is_left_as_it_was(family):
    model = build(family)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(ids, output_hidden_states=True).logits  # transformers' own hooks are made here
    hooks, settings = hooks_of(model), (model.config.to_dict(), model.generation_config.to_dict())
    implementation, modules = model.config._attn_implementation, [type(m) for m in model.modules()]
    random = torch.get_rng_state()

    for layer in (f"block:{BLOCKS - 1}", "block:0"):
        inverter = Inverter(model, layer=layer)
        states = inverter.capture(texts(6, 1))
        inverter.invert(states, PriorOrder())
    Inverter(model).invert(Inverter(model).capture(texts(6)))  # fits a lens, which lets the model write

    assert (model.config.to_dict(), model.generation_config.to_dict()) == settings
    assert model.config._attn_implementation == implementation
    assert model.config.num_hidden_layers == BLOCKS == len(blocks_of(model))
    assert [type(m) for m in model.modules()] == modules
    assert hooks_of(model) == hooks
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(torch.get_rng_state(), random), "the global random generator moved"


def test_the_twin_shares_every_parameter():
    model = make("llama")
    own = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in Decoder(model).body.parameters()} <= own


def test_the_twin_computes_gpt2s_activation_in_one_fused_operation_and_leaves_others_alone():
    fused, kept = Decoder(make("gpt2")), Decoder(make("llama"))
    assert {type(m).__name__ for m in fused.model.modules()} >= {"NewGELUActivation"}
    assert not {type(m).__name__ for m in fused.body.modules()} & {"NewGELUActivation"}
    kinds = {type(m).__name__.removeprefix("Packed") for m in kept.body.modules()} - {"Identity"}  # see ops/linear.py
    assert kinds <= {type(m).__name__ for m in kept.model.modules()}


def test_log_probs_are_those_of_the_model():
    model = make("qwen3")
    expected = model(ids).logits.log_softmax(-1)
    for layer in ("final_norm", f"block:{BLOCKS - 1}"):
        decoder = Decoder(model, layer=layer)
        torch.testing.assert_close(decoder.log_probs(decoder.capture(ids)), expected, rtol=1e-5, atol=1e-5)
