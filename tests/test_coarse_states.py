"""The bundled model's states in half precision, stored or computed in it, on real text."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from invert_fast import Inverter, States, Status
from invert_fast.cli import demo
from invert_fast.intake.files import open_source
from invert_fast.model.decoder import capture
from invert_fast.model.numerics import model_in
from invert_fast.storage.precisions import CODES, codes_of, rounded
from invert_fast.storage.states import write_states
from invert_fast.types import QUANTISED, InputError

from .families import inverter, texts
from .recovered import check


@pytest.fixture(scope="module")
def bundled():
    return Inverter.from_pretrained("bundled")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "fp8_e4m3", "fp8_e5m2", "int8"])
def test_bundled_coarse_states(bundled, dtype):
    right, certified, _ = check(bundled, [bundled.encode(s) for s in demo.sentences()], store_dtype=dtype)
    assert right >= 0.99
    assert certified >= 0.99


def test_bundled_computed_in_bf16():
    """States of a bf16 forward pass, inverted in fp32: ten times the noise of rounding alone, and all certified."""
    rows = [Inverter.from_pretrained("bundled").encode(s) for s in demo.sentences()[:12]]
    states = Inverter.from_pretrained("bundled", dtype="bfloat16").capture(rows, store_dtype="bfloat16")
    found = Inverter.from_pretrained("bundled").invert(states)
    for recovery, row in zip(found, rows, strict=True):
        right = recovery.token_ids == np.array(row)
        assert right.all()
        assert recovery.certified
    tokens = sum(map(len, rows))
    assert sum(r.cost.forward_tokens for r in found) < 1.5 * tokens


FEW_MORE = 1.3  # forward tokens, over those of fp32 states


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("ours", ["float32", "bfloat16"])
def test_a_bf16_pass_costs_little_more_than_an_fp32_one(family, ours):
    """Into an inverter in either precision: exact, certified, and without trying the vocabulary."""
    exactly, truth = inverter(family), texts(*[12] * 8)
    model = copy.deepcopy(exactly.decoder.model).to(torch.bfloat16)
    inv = exactly if ours == "float32" else Inverter(model)
    states = [States(h, -1) for h in capture(model, exactly.decoder.layer, torch.tensor(truth))]
    found, finest = inv.invert(states), exactly.invert(exactly.capture(truth))
    right = np.concatenate([r.token_ids == row for r, row in zip(found, truth, strict=True)])
    certified = np.concatenate([r.status == Status.CERTIFIED for r in found])
    assert right.all()
    assert certified.mean() >= 0.99
    spent, least = (sum(r.cost.forward_tokens for r in some) for some in (found, finest))
    assert spent <= FEW_MORE * least + 16


def test_what_states_were_is_seen_from_their_numbers(bundled):
    rows = [bundled.encode(s) for s in demo.sentences()[:8]]
    exact = bundled.capture(rows)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        shown = States(exact[0].hidden.to(dtype).float())
        assert shown.precision() == (name, name)
        assert States(shown.hidden.double()).precision() == (name, name)
        assert States(shown.hidden, dtype="float32", compute_dtype="float32").precision() == (name, name)
        mixed = [s if i else States(s.hidden.to(dtype).float()) for i, s in enumerate(exact)]
        found = bundled.invert([*mixed[1:], mixed[0]])  # the coarsest of them counts
        assert all(r.certified for r in found)
    assert exact[0].precision() == ("float32", "float32")
    assert States(torch.zeros(3, 4)).precision() == ("float32", "float32")
    assert States(exact[0].hidden.bfloat16(), compute_dtype="float32").precision() == ("bfloat16", "float32")


@pytest.mark.parametrize("dtype", QUANTISED)
def test_quantised_states_are_recognised_however_they_are_held(bundled, dtype):
    """fp32 (and fp64) values that all are levels of fp8 or int8; codes with their scales; and nothing else is."""
    (exact,) = bundled.capture(["Meet me at nine by the old mill."])
    rows = exact.hidden * torch.logspace(-2, 4, len(exact))[:, None]  # some overflow fp8
    codes, scale = codes_of(rows, dtype)
    held = rounded(rows, dtype)
    assert torch.equal(rounded(held, dtype), held) or dtype == "int8"
    assert ((held - rows).norm(dim=-1) < 0.09 * rows.norm(dim=-1)).all()
    for given in (held, held.double(), held * 1.0):
        assert States(given).precision() == (dtype, "bfloat16")
    assert States(held, compute_dtype="float16").precision() == (dtype, "float16")
    packed = States(codes, scale=scale)
    assert torch.equal(packed.hidden, held)
    assert packed.precision() == (dtype, "bfloat16")
    assert States(rows).precision() == ("float32", "float32")
    assert States(torch.cat([held, rows])).precision() == ("float32", "float32")
    with pytest.raises(InputError, match=r"\[3\].*expected"):
        States(codes, scale=scale[:3])


@pytest.mark.parametrize("dtype", QUANTISED)
def test_quantised_files(bundled, dtype, tmp_path):
    """As `capture` writes them, as others name their tensors, and in a mapping."""
    ids = [bundled.encode(s) for s in demo.sentences()[:3]]
    exact = bundled.capture(ids)
    ours, theirs, pt = (tmp_path / name for name in ("ours.safetensors", "theirs.safetensors", "theirs.pt"))
    write_states(ours, (s.hidden for s in exact), [*map(len, ids)], 256, CODES[dtype], {"dtype": dtype})
    rows = torch.nn.utils.rnn.pad_sequence([s.hidden for s in exact], batch_first=True)
    codes, scale = codes_of(rows, dtype)
    tensors = {"acts": codes, "acts.scale": scale, "attention_mask": (rows != 0).any(-1).long()}
    save_file(tensors, theirs)
    torch.save(tensors, pt)
    for path in (ours, theirs, pt):
        source = open_source(path, bundled.decoder.layer)
        source.check_finite()
        found = bundled.invert([source.states(i, -1) for i in range(len(ids))])
        assert [r.token_ids.tolist() for r in found] == ids
        assert all(r.certified for r in found)
    found = bundled.invert(tensors)
    assert [r.token_ids.tolist() for r in found] == ids


def test_codes_without_scales_and_scales_that_do_not_fit_are_refused(bundled, tmp_path):
    codes, scale = codes_of(bundled.capture(["A few words."])[0].hidden, "int8")
    for tensors, wanted in (({"hidden": codes}, "hidden_scale"), ({"hidden": codes, "scale": scale[:2]}, "one scale")):
        save_file(tensors, tmp_path / "s.safetensors")
        with pytest.raises(InputError, match=wanted):
            open_source(tmp_path / "s.safetensors", bundled.decoder.layer)
    with pytest.raises(InputError, match="scales"):
        States(codes)
    with pytest.raises(InputError, match="one for all"):
        bundled.invert({"hidden": codes, "scale": scale[:2]})


def test_int8_weights(bundled):
    """States of the same model with its weights rounded, told so."""
    rows = [bundled.encode(s) for s in demo.sentences()[:12]]
    model = model_in(bundled.decoder.model, "int8")
    states = [
        States(capture(model, bundled.decoder.layer, torch.tensor([row]))[0], compute_dtype="int8") for row in rows
    ]
    for recovery, row in zip(bundled.invert(states), rows, strict=True):
        assert recovery.token_ids.tolist() == row
        assert recovery.certified
        assert recovery.error_bound.max() <= 1.01e-9
