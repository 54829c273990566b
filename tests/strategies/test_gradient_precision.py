"""The search in bf16 with verification in fp32: as exact as the search in fp32, and only where it was asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from invert_fast.model.prefix import PrefixCall
from invert_fast.model.replay import Programs
from invert_fast.types import InputError

from ..families import VOCAB, exact, inverter, texts
from .modes import MODES


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_a_search_in_bf16_ends_exact_and_certified(family, mode):
    truth, inv = texts(3, 1, 0, 2), inverter(family)
    found = inv.invert(inv.capture(truth), replace(MODES[mode], search_dtype="bfloat16"))
    assert exact(found, truth)
    assert all(r.certified and r.precision.startswith("float32") for r in found)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_taken_in_bf16_and_candidates_verified_in_fp32(mode, monkeypatch):
    truth, inv = texts(3), inverter("llama")
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    run = type(inv.decoder).run

    def watched(self, embeds, positions, call, compute="float32"):
        for prefix in call.keys or []:
            assert prefix.dtype == embeds.dtype
        seen[embeds.requires_grad].add(embeds.dtype)
        return run(self, embeds, positions, call, compute)

    states = inv.capture(truth)
    inv.calibrate()
    monkeypatch.setattr(Programs, "_program", lambda *_: None)  # replays would not come by
    monkeypatch.setattr(type(inv.decoder), "run", watched)
    for asked, expected in (("bfloat16", torch.bfloat16), (None, torch.float32)):
        assert exact(inv.invert(states, replace(MODES[mode], search_dtype=asked)), truth)
        assert seen == {True: {expected}, False: {torch.float32}}
        seen = {True: set(), False: set()}


def test_the_copy_in_bf16_leaves_the_model_and_its_rotation_angles_alone():
    inv = inverter("llama")
    ids = torch.arange(40)[None] % VOCAB
    embeds, positions = inv.decoder.embed(ids), torch.arange(40)[None]
    full = inv.decoder.run(embeds, positions, PrefixCall(causal=True))
    low = inv.decoder.run(embeds.bfloat16(), positions, PrefixCall(causal=True))
    assert low.dtype == torch.bfloat16
    off = (low.float() - full).norm(dim=-1) / full.norm(dim=-1)
    assert 1e-4 < off.max() < 0.05, "rounding of bf16, at late positions too"
    torch.testing.assert_close(inv.decoder.run(embeds, positions, PrefixCall(causal=True)), full, rtol=0, atol=0)
    assert all(p.dtype == torch.float32 for p in inv.decoder.model.parameters())


def test_an_unknown_precision_is_refused():
    inv = inverter("gpt2")
    with pytest.raises(InputError, match="search_dtype 'int8' is unknown"):
        inv.invert(inv.capture(texts(1)), replace(MODES["sipit"], search_dtype="int8"))
