"""Reports that no run made: what a page has to cope with."""

from __future__ import annotations

from typing import Any

from invert_fast.audit.report import Report
from invert_fast.audit.settings import Cell

HOSTILE = [
    "<script>alert(1)</script>",
    "\u202eevil",
    "\x1b[31m",
    "</style><img src=x onerror=alert(1)>",
    "a&b\"'",
    "{{ 7*7 }}",
]
DEFENCES = ("none", "gaussian:0.1", "gaussian:1", "drop:0.2")
TEXTS = 40  # enough for an interval around none of them that ends below a tenth
ABOUT = {
    "format": "invert_fast-audit-1",
    "model": {"name": HOSTILE[0], "fingerprint": "gpt2:0", "parameters": 10, "blocks": 2},
    "settings": {"strategies": ["auto"], "defences": [*DEFENCES[1:]], "max_tokens": 6, "seed": 0},
    "texts_in_all": TEXTS,
    "texts_without_tokens": 0,
    "input": "0" * 64,
    "shard": None,
    "device": "cpu",
    "dtype": "float32",
    "bare_seconds_per_token": 1e-4,
    "threads": 1,
    "begun": "2026-01-01",
    "versions": {"invert_fast": "0"},
}


def line(cell: Cell, index: int, right: int, status: str, **more: Any) -> dict[str, Any]:
    """A line of a text of six tokens, the last of which are wrong."""
    ids = [*range(1, right + 1), *[0] * (6 - right)]
    row = {
        **vars(cell),
        "text": index,
        "tokens": 6,
        "exact": right == 6,
        "right": right,
        "similarity": right / 6,
        "certified": status.count("c"),
        "ambiguous": status.count("a"),
        "certified_wrong": status[right:].count("c"),
        "discrete_loss": 1e-3,
        "forward_tokens": 6,
        "backward_tokens": 0,
        "seconds": 1e-3,
        "status": status,
        "loss": 12.0,
        "loss_undefended": 10.0,
        "predicted": 5,
        "to_predict": 5,
    }
    if right < 6:
        row |= {"token_ids": ids, "recovered": "?", "pieces": [*HOSTILE[:right], *[HOSTILE[0]] * (6 - right)]}
    return row | more


def report(right: dict[str, int] | None = None, status: str = "cabnf-", **more: Any) -> Report:
    """Hostile texts in two layers; right: how many tokens of each come back under a defence; more: of every
    defended line."""
    right = {"none": 6, "gaussian:0.1": 5, "gaussian:1": 0, "drop:0.2": 4} | (right or {})
    cells = [
        Cell(layer, "float32", defence, "auto" if defence == "none" else "read-off")
        for layer in ("block:0", "final_norm")
        for defence in DEFENCES
    ]
    texts = {
        i: {"index": i, "ids": [1, 2, 3, 4, 5, 6], "text": "".join(HOSTILE), "pieces": HOSTILE} for i in range(TEXTS)
    }
    tokens = {
        str(i + 1): {
            "text": piece,
            "kind": "punctuation" if i % 2 else "digits",
            "nearest": 0.5 + i,
            "neighbour": piece,
        }
        for i, piece in enumerate(HOSTILE)
    }
    results = {}
    for cell in cells:
        plain = cell.defence == "none"
        back = right[cell.defence]
        marks = "cccccc" if plain else status if back else status.replace("c", "b")
        results[cell] = [line(cell, i, back, marks, **({} if plain else more)) for i in range(TEXTS)]
    return Report({**ABOUT, "cells": []}, texts, tokens, results)
