"""The trial at load: who runs by our pass, who by their own, who by neither; and that a fault in either is seen."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import transformers

from invert_fast import Continuous, InputError, Inverter, PriorOrder
from invert_fast.model import attention
from invert_fast.model.decoder import Decoder

from ..families import VOCAB, WINDOW, build, config, exact, make, texts
from .refusals import one_line

LENGTHS = (1, 12, 30)
small: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
OWN = [  # configuration, what is said of why it does not run in our way
    (transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4), "do not attend"),  # ALiBi
    (
        transformers.CodeGenConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
        "attend",
    ),
    (transformers.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4), "do not attend"),
    (transformers.RwkvConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2), "do not attend"),
    (transformers.GptOssConfig(num_key_value_heads=2, head_dim=8, num_local_experts=4, **small), "off its own, from"),
]


def sharp(settings: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(settings)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(2.0)
    return model


def of(family: str, **changes) -> transformers.PretrainedConfig:
    settings = config(family)
    settings.update(changes)
    return settings


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "why"), OWN, ids=lambda x: getattr(x, "model_type", ""))
@pytest.mark.parametrize("layer", [-1, 1])
def test_models_that_do_not_run_in_our_way_run_in_their_own(settings, why, layer, caplog):
    with caplog.at_level(logging.WARNING, "invert_fast"):
        inverter = Inverter(sharp(settings), layer=layer)
    assert inverter.decoder.own is not None
    assert why in caplog.text
    truth = texts(*LENGTHS)
    found = inverter.invert(inverter.capture(truth))
    assert exact(found, truth)
    assert sum(r.cost.forward_tokens for r in found) >= sum(LENGTHS)


@pytest.mark.parametrize("keeps", [True, False])
def test_lanes_of_either_path_give_the_same_states(keeps):
    ids, every, stands = torch.tensor(texts(20, 20, 20)), torch.arange(3), torch.tensor([0, 9, 19])
    found = []
    for path in ("fast", "own"):
        decoder = Decoder(make("qwen3"), layer=2, path=path)
        if decoder.own is not None:
            decoder.own.keeps = keeps
        lanes = _lanes(decoder)
        lanes.target_length[:] = 20
        whole = lanes.draft(every, ids)
        lanes.commit(every, ids, stands, every)
        block = torch.tensor(texts(7, 7, 7, seed=1))
        many = every.repeat(40), torch.arange(120) % (stands.repeat(40) + 1)
        found.append(
            [
                whole,
                lanes.draft(every, ids[:, :3]),
                lanes.fan_out(every, block),
                lanes.fan_out_at(every, stands // 2, block),
                lanes.fan_out_at(*many, torch.randint(VOCAB, (120, 1), generator=torch.Generator().manual_seed(0))),
            ]
        )
        lanes = _lanes(decoder)
        lanes.target_length[:] = 20
        for turn in range(4):  # on together, a token at a time
            found[-1].append(lanes.draft(every, ids[:, turn, None]))
            lanes.commit(every, ids[:, turn, None], torch.ones_like(stands), every)
        lanes.take_back(every, torch.full_like(stands, 2))
        found[-1].append(lanes.draft(every, ids[:, 7, None]))
    for ours, own in zip(*found, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


def _lanes(decoder: Decoder):
    from invert_fast.model.own_lanes import lanes_of

    return lanes_of(decoder, 3, 20)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [PriorOrder(), Continuous()])
def test_other_strategies_run_by_a_models_own_pass_too(strategy):
    inverter = Inverter(build("llama"))
    inverter.decoder = Decoder(inverter.decoder.model, path="own")
    truth = texts(4, 7)
    assert exact(inverter.invert(inverter.capture(truth), strategy), truth)


def test_models_that_look_ahead_are_refused_and_told_where():
    with pytest.raises(InputError) as error:
        Inverter(sharp(transformers.BertConfig(is_decoder=False, **small)))
    assert "'bert' cannot be inverted" in one_line(error)
    assert "changes by" in one_line(error)


@pytest.mark.parametrize("fault", ["no window", "no prefix", "prefix in fan-outs alone"])
def test_a_fault_of_our_attention_is_seen(fault, monkeypatch, caplog):
    """With texts of one token, or shorter than the window, none of these shows."""
    right = attention.ops.prefix_attention

    def wrong(query, key, value, keys, values, *args, causal, window, **more):
        if fault == "no prefix" or (fault == "prefix in fan-outs alone" and not causal):
            keys = values = None
            args = (None, None)
        return right(
            query,
            key,
            value,
            keys,
            values,
            *args,
            causal=causal,
            window=None if fault == "no window" else window,
            **more,
        )

    monkeypatch.setattr(attention.ops, "prefix_attention", wrong)
    with caplog.at_level(logging.WARNING, "invert_fast"):
        decoder = Decoder(make("mistral"))
    assert decoder.own is not None
    assert f"position {WINDOW}" in caplog.text if fault == "no window" else "after a prefix" in caplog.text


def test_texts_are_as_long_as_one_set_of_rotary_frequencies_serves():
    """Beyond, the states of a text's beginning depend on its length."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 48}
    decoder = Decoder(sharp(of("llama", rope_parameters=rope)))
    assert decoder.max_length == 48
    with pytest.raises(InputError) as error:
        Inverter(decoder.model).invert([torch.randn(60, decoder.width)])
    assert "48" in one_line(error)


def test_a_model_of_nothing_but_nan_is_refused():
    model = build("llama")
    model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        Inverter(model)
