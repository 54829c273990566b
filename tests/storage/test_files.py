"""States files: written whole or not at all, read row by row, and never trusted."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from invert_fast.storage.prompts import read_prompts
from invert_fast.storage.states import open_states, write_states
from invert_fast.types import InputError


def written(path, lengths=(3, 0, 5), dtype=torch.bfloat16):
    rows = [torch.randn(n, 4) for n in lengths]
    write_states(path, iter(rows), lengths, 4, dtype, {"layer": "final_norm", "dtype": "bfloat16", "model": "m:0"})
    return rows


def test_round_trip_through_the_library(tmp_path):
    path = tmp_path / "s.safetensors"
    rows = written(path)
    loaded = load_file(path)
    assert loaded["offsets"].tolist() == [0, 3, 3, 8]
    assert torch.equal(loaded["hidden"], torch.cat(rows).bfloat16())
    file = open_states(path)
    assert torch.equal(file.rows(3, 8), rows[2].bfloat16())
    assert (file.dtype, file.layer, file.model, file.lengths()) == ("bfloat16", "final_norm", "m:0", [3, 0, 5])


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken():
        yield torch.zeros(3, 4)
        raise RuntimeError("the model fell over")

    with pytest.raises(RuntimeError):
        write_states(tmp_path / "s.safetensors", broken(), [3, 5], 4, torch.float32, {})
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read_never_crash(tmp_path, data):
    """Any byte of the header changed, or the file cut anywhere: InputError, or rows that fit what the file says."""
    path = tmp_path / "s.safetensors"
    written(path)
    raw = bytearray(path.read_bytes())
    head = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, head + 31))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        file = open_states(path)
    except InputError:
        return
    for start, stop in file.spans:
        assert file.rows(start, stop).shape == (stop - start, file.width)


def test_prompts(tmp_path):
    (tmp_path / "p.txt").write_bytes("one\r\n\nthr\x0cee\u2028still\n".encode())
    assert read_prompts(tmp_path / "p.txt") == ["one", "", "thr\x0cee\u2028still"]
    (tmp_path / "p.jsonl").write_text('{"text": "a\\nb"}\n\n"plain"\n', encoding="utf-8")
    assert read_prompts(tmp_path / "p.jsonl") == ["a\nb", "plain"]
    assert read_prompts(tmp_path / "p.jsonl", limit=1) == ["a\nb"]
