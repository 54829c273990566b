"""What coarse states cost beside exact ones, on tiny random models of several families and on the bundled one.

    pytest bench/bench_precisions.py --benchmark-only

States of a bf16 pass go into an inverter of the fp32 model, and into one of the model in bf16; `ratio` compares
forward tokens a token with those of fp32 states of the same texts. And what a sliding window costs, beside the same
model without. Forward tokens are counted: they are the same on every machine but for rounding.
"""

from __future__ import annotations

import functools

import pytest
import torch
import transformers
from workloads import random_rows, real_rows

from invert_fast import Inverter, States, Status
from invert_fast.model.decoder import capture
from invert_fast.model.numerics import model_in

TEXTS, TOKENS, WINDOW, LONGER = 32, 32, 16, 100
_VOCAB, _WIDTH, _BLOCKS, _HEADS = 2000, 128, 4, 4


def tiny(family: str, seed: int = 0, **own):
    """A random model, sharper than a fresh initialisation, so that texts have states of their own."""
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=_VOCAB,
        hidden_size=_WIDTH,
        num_hidden_layers=_BLOCKS,
        num_attention_heads=_HEADS,
        num_key_value_heads=2,
        head_dim=_WIDTH // _HEADS,
        intermediate_size=2 * _WIDTH,
        max_position_embeddings=256,
        pad_token_id=None,
        **own,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.requires_grad_(False).parameters():
        if parameter.dim() > 1:
            parameter.mul_(4.0)
    return model


MODELS = {
    "bundled": None,
    "llama": functools.partial(tiny, "llama"),
    "qwen3_moe": functools.partial(
        tiny, "qwen3_moe", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=_WIDTH, norm_topk_prob=True
    ),
}


def inverter_of(name: str, dtype: torch.dtype = torch.float32) -> Inverter:
    make = MODELS[name]
    if make is None:
        return Inverter.from_pretrained("bundled", dtype=dtype)
    return Inverter(make().to(dtype))


def captured(inverter: Inverter, rows: list[list[int]], computed: str) -> list[States]:
    """States of the rows, by a pass in this precision of the model that the inverter has."""
    decoder = inverter.decoder
    model = decoder.model if next(decoder.model.parameters()).dtype == getattr(torch, computed) else None
    model = model or model_in(decoder.model, computed)
    hidden = (capture(model, decoder.layer, torch.tensor([row]))[0] for row in rows)
    return [States(h.to(getattr(torch, computed)), decoder.layer.name, compute_dtype=computed) for h in hidden]


def cost(inverter: Inverter, states: list[States], rows: list[list[int]]) -> dict[str, float]:
    """Forward tokens a token, and the share certified; a wrong token is a failure."""
    found = inverter.invert(states)
    assert [r.token_ids.tolist() for r in found] == rows
    tokens = sum(map(len, rows))
    return {
        "forward": sum(r.cost.forward_tokens for r in found) / tokens,
        "certified": sum(int((r.status == Status.CERTIFIED).sum()) for r in found) / tokens,
    }


@pytest.mark.parametrize("name", MODELS)
def bench_bf16_pass(benchmark, name):
    exact, coarse = inverter_of(name), inverter_of(name, torch.bfloat16)
    rows = real_rows(exact, TEXTS, TOKENS)[0] if name == "bundled" else random_rows(exact, TEXTS, TOKENS)
    plain = cost(exact, captured(exact, rows, "float32"), rows)
    states = captured(exact, rows, "bfloat16")
    into_fp32 = cost(exact, states, rows)
    into_bf16 = cost(coarse, captured(coarse, rows, "bfloat16"), rows)
    benchmark.extra_info.update(
        forward_tokens_fp32=round(plain["forward"], 2),
        ratio_into_fp32=round(into_fp32["forward"] / plain["forward"], 2),
        ratio_into_bf16=round(into_bf16["forward"] / plain["forward"], 2),
        certified_into_fp32=round(into_fp32["certified"], 4),
        certified_into_bf16=round(into_bf16["certified"], 4),
    )
    benchmark.pedantic(exact.invert, (states,), rounds=3)


def bench_window(benchmark):
    """gemma3 with a sliding window, texts six times as long."""
    figures = {}
    for window in (WINDOW, 4096):
        inverter = Inverter(tiny("gemma3_text", sliding_window=window))
        rows = random_rows(inverter, TEXTS // 2, LONGER)
        states = captured(inverter, rows, "float32")
        figures[window] = cost(inverter, states, rows)
        if window == WINDOW:
            benchmark.pedantic(inverter.invert, (states,), rounds=3)
    benchmark.extra_info.update(
        forward_tokens=round(figures[WINDOW]["forward"], 2),
        forward_tokens_without=round(figures[4096]["forward"], 2),
        certified=round(figures[WINDOW]["certified"], 4),
    )
