"""Columns of Arrow and Parquet files: a token or a text a row, as data sets keep them."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from invert_fast import InputError
from invert_fast.intake.files import open_source
from invert_fast.model.layer import Layer

WIDTH = 8
LAYER = Layer(1, 2)
TEXTS = [torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(n)) for n in (3, 0, 5)]
ROWS = [text.tolist() for text in TEXTS]


@pytest.fixture(scope="module")
def pa():
    reason = "pyarrow is not installed: pip install 'invert_fast[arrow]'"
    pytest.importorskip("pyarrow.parquet", reason=reason)
    return pytest.importorskip("pyarrow", reason=reason)


def written(pa, path, columns):
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path, row_group_size=1)
    else:
        new = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            for batch in table.to_batches(max_chunksize=2):
                writer.write_batch(batch)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "file.feather", "stream.arrow"])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_text_a_row(pa, tmp_path, name, kind):
    floats = getattr(pa, kind)()
    texts = [TEXTS[i].to(getattr(torch, kind)) for i in range(3)]
    column = pa.array([text.numpy().tolist() for text in texts], pa.list_(pa.list_(floats, WIDTH)))
    path = written(pa, tmp_path / name, {"states": column, "text": ["", "", ""]})
    source = open_source(path, LAYER)
    source.check_finite()
    assert source.lengths() == [3, 0, 5]
    for i, text in enumerate(texts):
        assert torch.equal(source.states(i, LAYER.name).hidden, text)


def test_a_token_a_row_is_one_text(pa, tmp_path):
    column = pa.array(ROWS[2], pa.large_list(pa.float32()))
    path = written(pa, tmp_path / "a.parquet", {"states": column, "id": [*range(5)]})
    source = open_source(path, LAYER)
    assert source.lengths() == [5]
    assert torch.equal(source.states(0, LAYER.name).hidden, TEXTS[2])


def test_the_column_is_asked_for_by_name(pa, tmp_path):
    column = pa.array(ROWS, pa.list_(pa.list_(pa.float32())))
    path = written(pa, tmp_path / "a.parquet", {"layer_1": column, "layer_2": column})
    with pytest.raises(InputError, match=r"`layer_1` list.*`layer_2`.*--tensor"):
        open_source(path, LAYER)
    assert open_source(path, LAYER, "layer_2").lengths() == [3, 0, 5]


BAD = {
    "ragged": ([[[1.0], [1.0, 2.0]]], "1 to 2 numbers"),
    "deep": ([[[[1.0]]]], "list of floats a token"),
    "ids": ([[1, 2]], "list of floats a token"),
    "empty cells": ([[[1.0]], None], "empty cells"),
    "empty numbers": ([[[1.0, None]]], "list of floats a token"),
}


@pytest.mark.parametrize("kind", BAD)
def test_columns_that_cannot_be_states(pa, tmp_path, kind):
    values, words = BAD[kind]
    path = written(pa, tmp_path / "a.parquet", {"states": values})
    with pytest.raises(InputError, match=words) as error:
        open_source(path, LAYER, "states")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_damaged_files(pa, tmp_path, name):
    path = written(pa, tmp_path / name, {"states": pa.array(ROWS, pa.list_(pa.list_(pa.float32())))})
    data = path.read_bytes()
    for length in (0, 6, len(data) // 3):
        path.write_bytes(data[:length])
        with pytest.raises(InputError) as error:
            open_source(path, LAYER)
        assert "\n" not in str(error.value)


def test_without_pyarrow_the_way_to_it_is_said(tmp_path, monkeypatch):
    if importlib.util.find_spec("pyarrow"):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"invert_fast\[arrow\]"):
        open_source(tmp_path / "a.parquet", LAYER)
