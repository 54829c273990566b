"""What states of a bf16 pass cost, in forward tokens, beside fp32 states of the same texts, in one process.

    python bench/precision_ratios.py [--models bundled llama qwen3_moe gemma3_text …] [--texts 16] [--tokens 32]

Models: `bundled`, a local folder, or the name of a family, of which a tiny one with random weights is made. Texts are
of C4 where there is a tokenizer (as it begins them) and random ids else. The bf16 states go into an inverter that
computes in fp32 and into one that computes in bf16. The last rows are a Gemma 3 with a window of 16 tokens and without
one, fp32: what the window costs. Any token that is certified and wrong ends the run with an error.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from workloads import random_rows, real_rows

from invert_fast import Inverter, States, Status
from invert_fast.model.decoder import capture
from invert_fast.model.numerics import model_in
from invert_fast.types import dtype_named

_VOCAB, _SHARPER = 300, 2.0
_WINDOW, _NONE = 16, 128
HEAD = ["| model | states | tokens right | certified | forward/token | of fp32 |", "| - | - | - | - | - | - |"]


def tiny(family: str, window: int = _WINDOW) -> transformers.PreTrainedModel:
    """Sharper than a fresh initialisation, so that texts have clearly different states."""
    wanted: dict[str, Any] = {
        "vocab_size": _VOCAB,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": _NONE,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "sliding_window": window,
        "pad_token_id": 0,
    }
    kind = transformers.CONFIG_MAPPING[family]
    known = kind()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = kind(**{name: value for name, value in wanted.items() if hasattr(known, name)})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.requires_grad_(False).parameters():
        if parameter.dim() > 1:
            parameter.mul_(_SHARPER)
    return model


def load(name: str, dtype: str = "float32") -> Inverter:
    if name == "bundled" or Path(name).is_dir():
        return Inverter.from_pretrained(name, device="cpu", dtype=dtype)
    model = tiny(name)
    torch.nn.Module.to(model, dtype_named(dtype))  # in place
    return Inverter(model)


def rows_of(inverter: Inverter, texts: int, tokens: int) -> list[list[int]]:
    if inverter.decoder.tokenizer is None:
        return random_rows(inverter, texts, tokens)
    opening = inverter.decoder.encode("", special=True)
    return [[*opening, *row] for row in real_rows(inverter, texts, tokens)[0]]


def bf16_states(inverter: Inverter, rows: list[list[int]]) -> list[States]:
    """As somebody else's machine would have captured them, one text after the other."""
    model = model_in(inverter.decoder.model, "bfloat16")
    layer = inverter.decoder.layer
    return [States(capture(model, layer, torch.tensor([row]))[0], layer.name) for row in rows]


def row_of(name: str, what: str, inverter: Inverter, states, rows: list[list[int]], base: float | None) -> float:
    """Invert and print. Returns forward tokens a token."""
    found = inverter.invert(states)
    right = np.concatenate([r.token_ids == np.array(row) for r, row in zip(found, rows, strict=True)])
    certified = np.concatenate([r.status == Status.CERTIFIED for r in found])
    cost = sum(r.cost.forward_tokens for r in found) / len(right)
    ratio = "" if base is None else f"{cost / base:.2f}"
    name = name.rstrip("/").rsplit("/", 1)[-1]
    print(f"| {name} | {what} | {right.mean():.2%} | {certified.mean():.2%} | {cost:.2f} | {ratio} |", flush=True)
    if (certified & ~right).any():
        sys.exit(f"{name}, {what}: {int((certified & ~right).sum())} tokens are certified and wrong")
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bundled", "llama", "qwen3_moe", "gemma3_text"])
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    print("\n".join(HEAD))
    for name in args.models:
        inverter = load(name)
        rows = rows_of(inverter, args.texts, args.tokens)
        base = row_of(name, "fp32", inverter, inverter.capture(rows), rows, None)
        states = bf16_states(inverter, rows)
        row_of(name, "bf16 pass into fp32", inverter, states, rows, base)
        row_of(name, "bf16 pass into bf16", load(name, "bfloat16"), states, rows, base)
    rows, base = random_rows(Inverter(tiny("gemma3_text")), args.texts, 3 * _WINDOW), None
    for window in (_NONE, _WINDOW):
        inverter = Inverter(tiny("gemma3_text", window))
        what = f"fp32, a window of {window}" if window == _WINDOW else "fp32, no window"
        base = row_of("gemma3_text", what, inverter, inverter.capture(rows), rows, base)


if __name__ == "__main__":
    main()
