"""One vector, one short prompt: found often, and never called verified when wrong."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invert_fast import InputError, Inverter
from invert_fast.cli.main import main
from invert_fast.logits import Logits, VectorSearch
from invert_fast.types import Status

from ..families import build, embedding_table

SMALL = {"vocab": 120, "width": 32, "blocks": 2}
QUICK = VectorSearch(rounds=12)


def vector(inv: Inverter, ids: list[int]) -> Tensor:
    """`[1, V]` log-probs after a whole prompt, by the model itself."""
    return inv.decoder.model(input_ids=torch.tensor([ids])).logits[0, -1:].float().log_softmax(-1).detach()


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    return torch.randint(3, SMALL["vocab"], (count, length), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def small() -> Inverter:
    return Inverter(build("gpt2", **SMALL))


def test_known_length(small):
    truth = prompts(8, 3)
    found = small.invert_vector([vector(small, ids) for ids in truth], 3, settings=QUICK)
    assert sum(r.token_ids == ids for r, ids in zip(found, truth, strict=True)) >= 6
    for recovery, ids in zip(found, truth, strict=True):
        assert not recovery.verified or recovery.token_ids == ids
        if recovery.verified:
            assert recovery.residual < 1e-4 < recovery.runner_up


def test_unknown_length_and_a_subset_of_entries(small):
    truth = [*prompts(2, 1), *prompts(2, 2), *prompts(2, 3)]
    some = torch.arange(20, 90)
    records = [Logits(vector(small, ids)[:, some], some) for ids in truth]
    found = small.invert_vector(records, max_length=3, settings=QUICK)
    assert sum(r.token_ids == ids for r, ids in zip(found, truth, strict=True)) >= 5
    assert all(r.token_ids == ids for r, ids in zip(found, truth, strict=True) if r.verified)


def test_the_answer_does_not_depend_on_what_is_searched_beside_it(small):
    truth = prompts(4, 2)
    together = small.invert_vector([vector(small, ids) for ids in truth], 2, settings=QUICK)
    again = small.invert_vector([vector(small, ids) for ids in truth], 2, settings=QUICK)
    assert [r.token_ids for r in together] == [r.token_ids for r in again]


@given(seed=st.integers(0, 999), noise=st.floats(1e-6, 1.0), stored=st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=10)
def test_nothing_wrong_is_verified(small, seed, noise, stored):
    """Noisy vectors, coarse vectors, and vectors of prompts that are longer than was said."""
    (ids,) = prompts(1, 2 + seed % 3, seed)
    values = vector(small, ids) + noise * torch.randn(1, SMALL["vocab"], generator=torch.Generator().manual_seed(seed))
    try:
        record = Logits(values.to(getattr(torch, stored)), kind="logits")
        (found,) = small.invert_vector(record, 2, settings=VectorSearch(rounds=3))
    except InputError as error:
        if "unexplained" not in str(error):
            raise
        return
    assert not found.verified or found.token_ids == ids


def test_equal_rows_are_ambiguous():
    model = build("gpt2", **SMALL)
    embedding_table(model)[31] = embedding_table(model)[5].clone()
    inv = Inverter(model)
    (found,) = inv.invert_vector(vector(inv, [9, 31]), 2, settings=QUICK)
    assert found.status == Status.AMBIGUOUS
    assert not found.verified


def test_a_near_twin_of_a_token_is_seen():
    """Rows so near that a stored bfloat16 vector cannot tell them apart."""
    model = build("gpt2", **SMALL)
    embedding_table(model)[31] = embedding_table(model)[5] * 1.0001
    inv = Inverter(model)
    for ids in ([9, 31], [31, 9], [5, 9]):
        (found,) = inv.invert_vector(vector(inv, ids).bfloat16(), 2, settings=QUICK)
        assert not found.verified


@pytest.mark.parametrize("length", [17, 0])
def test_lengths_out_of_range(small, length):
    with pytest.raises(InputError, match="out of range, expected 1 to 16"):
        small.invert_vector(vector(small, [3, 4]), length)


def test_the_command(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"text": "Cats"}\n{"text": "The dog"}\n{"text": ""}\n', encoding="utf-8")
    base = ["logits", "capture", "--model", "bundled", "--input", str(tmp_path / "p.jsonl"), "--max-tokens", "2"]
    assert main([*base, "--output", str(tmp_path / "l.safetensors")]) == 0
    search = ["logits", "search", "--model", "bundled", str(tmp_path / "l.safetensors"), "--max-length", "2",
              "--output", str(tmp_path / "f.jsonl"), "--json"]  # fmt: skip
    capsys.readouterr()
    assert main(search) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["prompts"], summary["verified"]) == (2, 2)
    lines = (tmp_path / "f.jsonl").read_text(encoding="utf-8").splitlines()
    inverter = Inverter.from_pretrained("bundled")
    assert [json.loads(line)["token_ids"] for line in lines] == [inverter.encode(t, 2) for t in ("Cats", "The dog")]
    assert main(search) == 2  # never written over
    (tmp_path / "f.jsonl").write_text(lines[0] + "\n" + lines[1][:9], encoding="utf-8")
    assert main([*search, "--resume"]) == 0
    again = (tmp_path / "f.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["index"] for line in again] == [0, 1]
