"""vec2text's habits need no other package: these run everywhere."""

from __future__ import annotations

import logging

import pytest
import torch

from invert_fast import InputError, Inverter
from invert_fast.integrations.vec2text import invert_hidden_states, invert_strings, load_inverter


def test_strings_come_out_and_what_is_not_certified_is_said(example, caplog):
    names = example("vec2text")
    inverter, (first, second) = names["inverter"], names["states"]
    assert invert_strings(["Meet me at nine."], inverter) == ["Meet me at nine."]
    noisy = first + 3 * first.std() * torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
    logger = logging.getLogger("invert_fast")
    logger.propagate, before = True, logger.propagate
    try:
        texts = invert_hidden_states([second, noisy], inverter, strategy="speculative")
    finally:
        logger.propagate = before
    assert texts[0] == "Meet me at nine."
    assert "1 of 2 texts are not certified (the first: text 1, position 0)" in caplog.text
    with pytest.raises(RuntimeError, match="position 0 is"):
        invert_hidden_states(noisy, inverter, doubt="raise", strategy="speculative")
    with pytest.raises(InputError, match="expected warn, raise, ignore"):
        invert_hidden_states(noisy, inverter, doubt="never")
    with pytest.raises(InputError, match="has no tokenizer"):
        invert_hidden_states(noisy, Inverter(inverter.decoder.model, None, "block:2"))
    assert load_inverter("bundled", "block:2").decoder.layer.name == "block:2"
