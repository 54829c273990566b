"""Models as people hand them over: compiled, with adapters, offloaded, resized."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invert_fast import InputError, Inverter
from invert_fast.model.wrapped import value_of

from ..families import build, exact, texts
from .refusals import one_line

pytestmark = pytest.mark.usefixtures("small_fits")


def compiled() -> Any:
    return torch.compile(build("llama"), backend="eager")


def compiled_forward():
    model = build("llama")
    model.model.forward = torch.compile(model.model.forward, backend="eager")
    return model


def compiled_in_place():
    model = build("llama")
    model.model.compile(backend="eager")
    return model


def with_adapters():
    peft = needed("peft")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(build("llama"), settings).eval()


def with_adapters_merged():
    return with_adapters().merge_and_unload()


def offloaded(tmp_path):
    return needed("accelerate").disk_offload(build("llama"), str(tmp_path), execution_device=torch.device("cpu"))


def resized():
    model = build("llama")
    model.resize_token_embeddings(317)
    return model.requires_grad_(False)


def needed(name: str):
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[test]'")


@pytest.mark.parametrize(
    "make", [compiled, compiled_forward, compiled_in_place, with_adapters, with_adapters_merged, offloaded, resized]
)
def test_what_wraps_a_model_stays_in_effect_and_out_of_the_way(make, tmp_path):
    model = make(tmp_path) if make is offloaded else make()
    truth = texts(3, 14, 25)
    states = [_own(model, ids) for ids in truth]
    inverter = Inverter(model)
    assert (inverter.decoder.own is not None) == (make is offloaded), "only weights that come and go keep our pass out"
    assert exact(inverter.invert(states), truth)


@torch.no_grad()
def _own(model, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]


def test_the_fingerprint_is_of_the_weights_in_effect(tmp_path):
    plain = Inverter(build("llama")).decoder.fingerprint()
    assert Inverter(compiled()).decoder.fingerprint() == plain
    assert Inverter(offloaded(tmp_path)).decoder.fingerprint() == plain
    assert Inverter(with_adapters_merged()).decoder.fingerprint() != plain
    assert Inverter(with_adapters()).decoder.fingerprint() != plain


def test_a_model_on_the_meta_device_is_refused():
    with pytest.raises(InputError) as error:
        Inverter(nn.Module.to(build("llama"), "meta"))  # type: ignore[arg-type]
    assert "meta device" in one_line(error)


def test_packed_weights_are_read_as_numbers():
    ao = needed("torchao.quantization")
    linear = nn.Linear(64, 64, bias=False)
    before = linear.weight.detach().clone()
    ao.quantize_(nn.Sequential(linear), ao.Int8WeightOnlyConfig())
    torch.testing.assert_close(value_of(linear, "weight"), before, rtol=0, atol=0.01)
