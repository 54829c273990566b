"""lm-evaluation-harness: its own run, with our model and task by their names."""

from __future__ import annotations

from invert_fast.integrations.needs import LM_EVAL

from .needed import needed
from .page import PASSWORD

needed(LM_EVAL)
MEASURES = ("token_accuracy", "exact_match", "certified")


def test_the_example_scores_layer_by_layer(example):
    names = example("lm_eval")
    found = names["results"]["results"]["hidden_state_leakage"]
    for layer in ("block:2", "final_norm"):
        assert [found[f"{name}@{layer},none"] for name in MEASURES] == [1.0] * 3
        assert [found[f"{name}@{layer}_stderr,none"] for name in MEASURES] == [0.0] * 3
    (first, _) = names["results"]["samples"]["hidden_state_leakage"]
    assert first["filtered_resps"][0]["block:2"]["text"] == PASSWORD
    assert names["results"]["n-samples"]["hidden_state_leakage"]["effective"] == 2
