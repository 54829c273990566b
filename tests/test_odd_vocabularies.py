"""Vocabularies that do not fit their tokenizer, and rows of them that are no numbers."""

from __future__ import annotations

from importlib import import_module

import pytest

from invert_fast import InputError, Inverter

from .families import VOCAB, Tokenizer, build, embedding_table, exact, texts

SPOILT = (3, 77, 200)


@pytest.mark.parametrize("lists", [False, True], ids=["scored", "listed"])
@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_rows_of_nan_are_no_candidates_and_spoil_no_other_token(family, layer, lists, monkeypatch):
    for room in ("strategies.candidates", "lens.linear_fit") if lists else ():
        monkeypatch.setattr(import_module(f"invert_fast.{room}"), "MANY_TOKENS", 1)
    model = build(family)
    embedding_table(model)[list(SPOILT)] = float("nan")
    embedding_table(model)[78, 5] = float("inf")
    inv = Inverter(model, layer=layer)
    assert not inv.vocabulary.allowed[[*SPOILT, 78]].any()
    assert int(inv.vocabulary.allowed.sum()) == VOCAB - 4
    truth = [[i for i in ids if i not in (*SPOILT, 78)] for ids in texts(40, 9, 1)]
    assert exact(inv.invert(inv.capture(truth)), truth)


@pytest.mark.parametrize("lists", [False, True], ids=["scored", "listed"])
@pytest.mark.parametrize("size", [VOCAB - 30, VOCAB + 30])
def test_a_vocabulary_larger_or_smaller_than_the_tokenizers(size, lists, monkeypatch):
    for room in ("strategies.candidates", "lens.linear_fit") if lists else ():
        monkeypatch.setattr(import_module(f"invert_fast.{room}"), "MANY_TOKENS", 1)
    inv = Inverter(build("llama"), Tokenizer(size))
    usable = min(size, VOCAB)
    assert int(inv.vocabulary.allowed.sum()) == usable
    truth = texts(30, 12, 1, vocab=usable)
    assert exact(inv.invert(inv.capture(truth)), truth)
    if size > VOCAB:
        with pytest.raises(InputError, match=f"token id {VOCAB + 5} is outside"):
            inv.capture([f"<{VOCAB + 5}>"])
