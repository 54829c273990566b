"""Blocks that share a call ask for the same tokens, and only where that is worth what it computes in vain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invert_fast.engine.protocol import Block
from invert_fast.strategies.blocks import together
from invert_fast.strategies.speculative import _call_tokens

from ..families import inverter


def blocks_of(shapes: list[tuple[int, int]], part: str = "repair") -> list[Block]:
    slots, found = 0, []
    for rows, width in shapes:
        found.append(Block(torch.arange(slots, slots + rows), torch.arange(rows * width).view(rows, width), part))
        slots += rows
    return found


def asked(blocks: list[Block]) -> dict[int, list[int]]:
    """What each lane is to try."""
    return {
        int(slot): [token for token in ids.tolist() if token >= 0]
        for block in blocks
        for slot, ids in zip(block.slots, block.ids, strict=True)
    }


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 4, 8, 16, 64])), max_size=6), st.integers(0, 100))
def test_every_lane_is_asked_for_the_same_and_little_is_in_vain(shapes, call_tokens):
    blocks = blocks_of(shapes)
    found = together(blocks, call_tokens)
    assert asked(found) == asked(blocks)
    assert len(found) <= len(blocks)
    vain = sum(int((block.ids < 0).sum()) for block in found)
    assert vain <= call_tokens * (len(blocks) - len(found))


def test_blocks_of_like_size_share_a_call_and_others_do_not():
    assert [block.ids.shape for block in together(blocks_of([(1, 4), (2, 8), (1, 64)]), 20.0)] == [(1, 64), (3, 8)]
    assert len(together(blocks_of([(1, 4), (2, 8)]), 3.0)) == 2
    assert len(together([*blocks_of([(1, 4)]), *blocks_of([(1, 4)], "rivals")], 100.0)) == 2
    assert together([], 20.0) == []


@pytest.mark.parametrize(("weights", "tokens"), [(1_000, 96.0), (5 * 10**7, 10.0), (10**12, 8.0)])
def test_a_call_costs_the_fewer_tokens_the_more_a_token_computes(weights, tokens, monkeypatch):
    decoder = inverter("llama").decoder
    layers = decoder.model.config.num_hidden_layers
    monkeypatch.setitem(decoder.__dict__, "parameters", weights * layers + decoder.embedding.shape.numel())
    assert _call_tokens(decoder) == pytest.approx(tokens, rel=1e-3)
