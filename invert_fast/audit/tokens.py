"""What kind of token each is, how crowded it is around its row of the embedding, and which ones do not come back.

Kinds are those of 2607.00852, section 4.6: words with a space before them, punctuation, digits, parts of words.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .statistics import share

if TYPE_CHECKING:
    from ..inverter import Inverter

KINDS = ("word behind a space", "part of a word", "digits", "punctuation", "other")
_SPACES = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies write the space before a word
_LISTED, _CROWDS = 12, 5
_TOLD_APART = 0.5  # of its tokens have to come back for a cell to say which are hard: else all are


def kind_of(token: str, text: str) -> str:
    """Of a token as the vocabulary writes it, and its text."""
    body = text.strip()
    if not body or "\ufffd" in body or (token.startswith("<") and token.endswith(">") and len(token) > 2):
        return "other"
    if not any(char.isalnum() for char in body):
        return "punctuation"
    if any(char.isdigit() for char in body) and not any(char.isalpha() for char in body):
        return "digits"
    return KINDS[0] if token.startswith(_SPACES) or text[0] == " " else KINDS[1]


def describe(inverter: Inverter, ids: Sequence[int]) -> dict[str, dict[str, Any]]:
    """By id: its text, its kind, how far from its row the nearest other one is, and the text of that one.

    Distances are relative, as `Vocabulary.unit` has it: those in which the engine bounds what else could fit.
    """
    import torch

    tokenizer, vocabulary = inverter.decoder.tokenizer, inverter.vocabulary
    rows = vocabulary.representative.cpu()[torch.tensor([*ids])]
    near, distance, _ = vocabulary.neighbours.of(rows)
    found = {}
    for token, other, away in zip(ids, near[:, 0].tolist(), distance[:, 0].tolist(), strict=True):
        text = inverter.decoder.decode([token])
        raw = "" if tokenizer is None else tokenizer.convert_ids_to_tokens(token) or ""
        found[str(token)] = {
            "text": f"[{token}]" if text is None else text,
            "kind": "other" if text is None else kind_of(raw, text),
            "nearest": float(f"{away:.4g}") if np.isfinite(away) else None,
            "neighbour": None if other < 0 else inverter.decoder.decode([other]),
        }
    return found


def broken(
    results: Mapping[Any, Sequence[Mapping[str, Any]]],
    texts: Mapping[int, Mapping[str, Any]],
    tokens: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Which tokens did not come back, in the cells that tell: those where at least half did, and not all.

    Positions whose rows were not given away are left out: they say nothing of their tokens.
    """
    telling = [rows for rows in results.values() if _tells(rows)]
    order = [*texts]
    truth = np.array([token for index in order for token in texts[index]["ids"]], int)
    of_text = np.repeat(np.arange(len(order)), [len(texts[index]["ids"]) for index in order])
    counted = np.zeros((2, len(truth)), int)  # how often each position was given away, and missed
    for rows in telling:
        counted += _positions(rows, texts, order)
    seen = counted[0]
    known, code = np.unique(truth, return_inverse=True)
    said = [tokens[str(token)] for token in known.tolist()]
    kind = np.array([KINDS.index(one["kind"]) for one in said], int)[code] if len(said) else code
    away = np.array([np.nan if one["nearest"] is None else one["nearest"] for one in said], float)[code]

    def figures(mask: np.ndarray) -> dict[str, Any]:
        parts = [np.bincount(of_text[mask], column[mask], len(order)) for column in counted]
        some = parts[0] > 0
        near = np.repeat(away[mask], seen[mask])
        near = near[~np.isnan(near)]
        return {
            "tokens": int(parts[0].sum()),
            "missed": int(parts[1].sum()),
            "share": share(parts[1][some].tolist(), parts[0][some].tolist()),
            "nearest": round(float(np.median(near)), 4) if len(near) else None,
        }

    masks = {name: (kind == number) & (seen > 0) for number, name in enumerate(KINDS)}
    each = [np.bincount(code, column, len(known)).astype(int) for column in counted]
    most = [i for i in np.lexsort((known, -each[1])).tolist() if each[1][i]][:_LISTED]
    return {
        "cells": len(telling),
        "of_cells": len(results),
        "kinds": [{"kind": name, **figures(mask)} for name, mask in masks.items() if mask.any()],
        "most": [{**said[i], "id": int(known[i]), "tokens": int(each[0][i]), "missed": int(each[1][i])} for i in most],
        "crowds": [{"from": low, "to": high, **figures(mask)} for low, high, mask in _crowds(away, seen)],
    }


def _tells(rows: Sequence[Mapping[str, Any]]) -> bool:
    right, given = sum(row["right"] for row in rows), sum(len(row["status"].replace("-", "")) for row in rows)
    return _TOLD_APART * given <= right < given


def _positions(
    rows: Sequence[Mapping[str, Any]], texts: Mapping[int, Mapping[str, Any]], order: Sequence[int]
) -> np.ndarray:
    """`[2, N]`: of each position of all texts, whether it was given away, and whether it then was missed."""
    by_text = {row["text"]: row for row in rows}
    given, missed = [], []
    for index in order:
        row, truth = by_text[index], texts[index]["ids"]
        there = np.array([mark != "-" for mark in row["status"]], bool)
        found = np.array(row["token_ids"], int) if "token_ids" in row else np.array(truth, int)
        given.append(there)
        missed.append(there & (found != np.array(truth, int)))
    return np.stack([np.concatenate(given), np.concatenate(missed)]).astype(int)


def _crowds(away: np.ndarray, seen: np.ndarray) -> Iterator[tuple[float, float, np.ndarray]]:
    """The positions in five parts of like size, by how far from its row a token's nearest other row is."""
    known = ~np.isnan(away) & (seen > 0)
    if not known.any():
        return
    edges = np.unique(np.quantile(away[known], np.linspace(0, 1, _CROWDS + 1)))
    for low, high in itertools.pairwise(edges.tolist()):
        mask = known & (away >= low) & ((away < high) | (high == edges[-1]))
        if mask.any():
            yield round(low, 4), round(high, 4), mask
