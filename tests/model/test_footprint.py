"""What a model takes of memory: refused before a weight is read where it does not fit, counted where it does."""

from __future__ import annotations

import json
import logging
import struct
from pathlib import Path

import pytest
import torch

from invert_fast import InputError
from invert_fast.engine.memory import plan
from invert_fast.model.decoder import Decoder
from invert_fast.model.footprint import available_gib, check_fits, held_bytes
from invert_fast.model.load import load
from invert_fast.ops import native

from ..families import build, config, embedding_table, make
from .refusals import one_line

CPU = torch.device("cpu")


def checkpoint(folder: Path, gib: float, dtype: str = "F32", parts: int = 1) -> Path:
    """Headers of weights of so many GiB in fp32, and no weights."""
    folder.mkdir()
    config("llama").save_pretrained(folder)
    numbers = int(gib * (1 << 30) / 4 / parts)
    for part in range(parts):
        about = {f"w{part}": {"dtype": dtype, "shape": [numbers], "data_offsets": [0, 4 * numbers]}, "__metadata__": {}}
        header = json.dumps(about).encode()
        (folder / f"model-{part}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    names = {f"w{part}": f"model-{part}.safetensors" for part in range(parts)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


@pytest.mark.parametrize("parts", [1, 3])
def test_weights_that_do_not_fit_are_refused_with_what_would_fit(tmp_path, parts):
    folder = checkpoint(tmp_path / "model", 1.5 * available_gib(CPU), parts=parts)
    with pytest.raises(InputError) as error:
        load(folder)
    assert "in float32" in one_line(error)
    assert "GiB that are free on cpu" in one_line(error)
    assert "dtype bfloat16" in one_line(error)


def test_weights_that_fit_in_no_precision_are_refused_in_each(tmp_path):
    folder = checkpoint(tmp_path / "model", 9 * available_gib(CPU))
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(InputError, match="no precision fits"):
            load(folder, dtype=dtype)


def test_the_precision_asked_for_counts_and_not_the_files(tmp_path):
    folder = checkpoint(tmp_path / "model", 1.5 * available_gib(CPU), dtype="F32")
    check_fits(folder, "model", "cpu", torch.bfloat16)
    other = checkpoint(tmp_path / "other", 1.5 * available_gib(CPU), dtype="BF16")
    with pytest.raises(InputError, match="in float32"):
        check_fits(other, "model", "cpu", torch.float32)


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\xff" * 8 + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_of_a_damaged_header_loading_tells(tmp_path, damage):
    folder = checkpoint(tmp_path / "model", 1e-6)
    (folder / "model-0.safetensors").write_bytes(damage)
    check_fits(folder, "model", "cpu", torch.float32)
    with pytest.raises(InputError, match="could not be loaded"):
        load(folder)


# ---- what is held


def test_weights_packed_ones_and_copies_are_counted():
    model = build("llama")
    decoder = Decoder(model)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    linear = sum(p.nbytes for name, p in model.model.named_parameters() if "proj" in name)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert held_bytes(decoder) - buffers == weights + (linear if native.has("linear") else 0)
    half = Decoder(build("llama").bfloat16())
    assert half.embedding.copied == 4 * embedding_table(model).numel()
    assert held_bytes(half) - buffers < weights / 2 + half.embedding.copied + 1000


def test_the_model_is_part_of_the_memory_to_stay_within(caplog):
    decoder = Decoder(make("llama"))
    held = held_bytes(decoder) / (1 << 30)
    roomy, tight = (plan(decoder, 100, held + left, None) for left in (0.01, 0.0001))
    assert roomy.slots > tight.slots >= 1
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "invert_fast"):
        least = plan(decoder, 100, held / 2, None)
    assert (least.slots, least.tokens_per_call) == (1, 64)
    assert "--max-memory" in caplog.text


def test_two_views_of_a_model_pack_its_weights_once():
    if not native.has("linear"):
        pytest.skip("no compiled product on this machine")
    decoder = Decoder(make("llama"), layer=1)
    full = decoder.full()
    ids = torch.arange(32)[None]
    decoder.states(ids), full.states(ids)
    ours, theirs = (dict(d.body.named_modules())["layers.0.mlp.up_proj"] for d in (decoder, full))
    assert ours.packed(False)[0].data_ptr() == theirs.packed(False)[0].data_ptr()
    assert full.embedding is decoder.embedding
