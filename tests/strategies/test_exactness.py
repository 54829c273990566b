"""Every strategy recovers every text of every family exactly, of any layer and in any stored precision."""

from __future__ import annotations

import pytest

from invert_fast import Inverter

from ..families import BLOCKS, FAMILIES, MORE, POSITIONS, exact, inverter, texts
from ..pairs import pairwise
from .settings import MIXED, SHORTER, STRATEGIES, strategies

# Texts as long as the model allows, of families whose positions are rows of a table and of one that turns them: all by
# auto, and one by each other strategy.
LONGEST = {("gpt2", "prior"), ("opt", "exhaustive"), *((family, "auto") for family in ("gpt2", "llama", "opt"))}
LONGEST |= {("llama", "speculative"), ("opt", "chain")}


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
@strategies
def test_every_strategy_is_exact_on_every_family(family, strategy):
    lengths = MIXED if strategy == "auto" else SHORTER
    truth = texts(*lengths, *([POSITIONS] if (family, strategy) in LONGEST else []))
    inv = inverter(family)
    assert exact(inv.invert(inv.capture(truth), STRATEGIES[strategy]), truth)


@pytest.mark.parametrize(
    ("family", "layer", "strategy"),
    pairwise(
        ("gpt2", "llama", "mistral", "gemma"),
        ("embeddings", "block:0", "block:1", f"block:{BLOCKS - 1}"),
        ("auto", "prior", "exhaustive"),
    ),
)
def test_inner_layers_are_exact(family, layer, strategy):
    truth, inv = texts(*(MIXED if strategy == "auto" else SHORTER)), inverter(family, layer)
    assert exact(inv.invert(inv.capture(truth), STRATEGIES[strategy]), truth)


@strategies
def test_only_empty_texts(strategy):
    inv = inverter("gpt2")
    found = inv.invert(inv.capture([[], []]), STRATEGIES[strategy])
    assert [(len(r.token_ids), r.certified, r.first_failure) for r in found] == [(0, True, None)] * 2
    assert inv.invert([], STRATEGIES[strategy]) == []


@pytest.mark.parametrize(
    ("family", "strategy", "store_dtype"),
    pairwise(("gpt2", "llama", "qwen2", "gemma"), ("auto", "prior", "exhaustive"), ("float16", "bfloat16")),
)
def test_states_stored_in_half_precision_are_exact(family, strategy, store_dtype):
    truth, inv = texts(*(MIXED if strategy == "auto" else SHORTER)), inverter(family)
    assert exact(inv.invert(inv.capture(truth, store_dtype=store_dtype), STRATEGIES[strategy]), truth)


def test_inner_states_of_a_trained_model_give_back_real_text(shared):
    inv = Inverter.from_pretrained(shared / "models" / "babyllama-tok105", "block:0", device="cpu")
    lines = (shared / "text" / "c4_eval.jsonl").read_text().splitlines()[:3]
    truth = [inv.encode(line[10:], max_tokens=40) for line in lines]
    found = inv.invert(inv.capture(truth))
    for recovery, ids in zip(found, truth, strict=True):
        classes = [set(inv.vocabulary.equals(i)) for i in ids]  # unused tokens of a trained model may be one
        for t, (token, status) in enumerate(zip(recovery.token_ids.tolist(), recovery.status.tolist(), strict=True)):
            assert {token, *recovery.alternatives.get(t, [])} == classes[t]
            assert status == (0 if len(classes[t]) == 1 else 2)
