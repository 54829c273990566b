"""What an actor of Ray Data does with a batch, without Ray: tables in, tables out, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from invert_fast import InputError
from invert_fast.distributed import BatchInverter
from invert_fast.storage.recovered import read_recovered
from invert_fast.storage.states import open_states

from .states import TEXTS


@pytest.fixture(scope="module")
def inverting() -> BatchInverter:
    return BatchInverter("bundled", device="cpu")


@pytest.fixture(scope="module")
def rows(states) -> list[np.ndarray]:
    opened = open_states(states)
    return [opened.states(i, -1).hidden.numpy() for i in range(len(TEXTS))]


def nested(rows: list[np.ndarray], kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([row.tolist() for row in rows], pa.list_(pa.list_(kind or pa.float32())))


def test_a_column_of_states_makes_way_for_what_is_recovered(inverting, rows):
    table = inverting(pa.table({"id": [f"text {i}" for i in range(len(TEXTS))], "acts": nested(rows)}))
    assert table.column_names[:4] == ["id", "token_ids", "text", "certified"]
    found = table.to_pylist()
    assert [(row["id"], row["text"]) for row in found] == [(f"text {i}", text) for i, text in enumerate(TEXTS)]
    for row, states in zip(found, rows, strict=True):
        assert row["certified"]
        assert row["first_failure"] is None
        assert row["alternatives"] == []
        assert len(row["token_ids"]) == len(row["residual"]) == len(row["margin"]) == len(states)
        assert {*row["status"]} <= {"certified"}
    lists = inverting(pa.table({"acts": nested(rows[:2], pa.float64()), "mean": [[0.5, 1.0]] * 2}))
    assert lists.column("text").to_pylist() == TEXTS[:2], "a list of numbers is no text"
    half = inverting(pa.table({"acts": nested([row.astype(np.float16) for row in rows[:3]], pa.float16())}))
    assert half.column("text").to_pylist() == TEXTS[:3]
    assert all(half.column("certified").to_pylist())


def test_tensors_of_arrow_are_texts_too(inverting, rows):
    same = np.stack([row[:5] for row in rows[:3]])
    others = {"acts": pa.FixedShapeTensorArray.from_numpy_ndarray(same)}
    others["ids"] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((3, 5, 2), np.int64))
    table = inverting(pa.table(others))
    assert [len(ids) for ids in table.column("token_ids").to_pylist()] == [5, 5, 5]
    assert all(text.startswith(part) for text, part in zip(TEXTS, table.column("text").to_pylist(), strict=False))
    flat = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows[0]))
    with pytest.raises(InputError, match="expected one of states"):
        inverting(pa.table({"acts": flat}))
    named = BatchInverter("bundled", device="cpu", column="acts")
    with pytest.raises(InputError, match=r"tensors float32 \[256\], expected floats \[tokens, width\]"):
        named(pa.table({"acts": flat}))


def test_texts_of_a_file_are_read_where_they_are_recovered(inverting, states):
    table = pa.table({"index": [7, 2], "states_file": [str(states)] * 2, "states_text": [7, 2]})
    found = inverting(table).to_pylist()
    assert [(row["index"], row["states_text"], row["text"]) for row in found] == [(7, 7, TEXTS[7]), (2, 2, TEXTS[2])]


def test_what_is_not_certified_is_said_and_can_be_written(inverting, rows, tmp_path):
    noisy = rows[0] + np.random.default_rng(0).normal(0, 0.3 * rows[0].std(), rows[0].shape).astype(np.float32)
    speculative = BatchInverter("bundled", device="cpu", strategy="speculative", prefix="found_")
    (row,) = speculative(pa.table({"text": ["what was captured"], "acts": nested([noisy])})).to_pylist()
    assert row["text"] == "what was captured"
    assert not row["found_certified"]
    assert row["found_status"][row["found_first_failure"]] != "certified"
    line = {name.removeprefix("found_"): value for name, value in row.items() if name != "text"}
    (tmp_path / "a.jsonl").write_text(json.dumps({"index": 0, **line}, allow_nan=False))
    assert read_recovered(tmp_path / "a.jsonl")[0]["token_ids"] == row["found_token_ids"]
    assert inverting(pa.table({"acts": nested([])})).num_rows == 0


def refusals(rows: list[np.ndarray]) -> dict[str, tuple[object, str]]:
    holes = rows[1].copy()
    holes[3, 7] = np.nan
    narrow, good = [row[:, :12] for row in rows[:2]], nested(rows[:2])
    missing = pa.array([None, rows[0].tolist()], good.type)
    return {
        "numpy": ({"acts": rows}, r"a batch is a dict, expected an Arrow table: .*batch_format='pyarrow'"),
        "NaN": (pa.table({"id": ["a", "b"], "acts": nested([rows[0], holes])}), r"^id b: text 1: row 3 has NaN or Inf"),
        "width": (pa.table({"acts": nested(narrow)}), "states are 12 wide, this model's final_norm states are 256"),
        "none": (pa.table({"id": [1]}), "has columns id, expected one of states"),
        "two": (pa.table({"a": good, "b": good}), r"2 columns that could be states \(a, b\)"),
        "there": (pa.table({"text": ["x", "y"], "a": good}), r"has columns text already.*prefix='recovered_'"),
        "cells": (pa.table({"a": missing}), "column `a` has empty cells"),
    }


@pytest.mark.parametrize("kind", ["numpy", "NaN", "width", "none", "two", "there", "cells"])
def test_what_cannot_be_states_is_refused_by_name(inverting, rows, kind):
    batch, words = refusals(rows)[kind]
    with pytest.raises(InputError, match=words):
        inverting(batch)


def test_a_token_a_row_is_no_text(rows):
    inverting = BatchInverter("bundled", device="cpu", column="acts")
    for some in (rows[0], rows[0][:1]):
        with pytest.raises(
            InputError, match=r"column `acts` is list<.*>, a token a row, expected a list of such lists"
        ):
            inverting(pa.table({"acts": pa.array(some.tolist(), pa.list_(pa.float32()))}))
    with pytest.raises(InputError, match="has no column `acts`, expected one of `id` int64"):
        inverting(pa.table({"id": [1]}))
