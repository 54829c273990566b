"""The footer of a Parquet file as pyarrow reads it, where that is whole; refused where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invert_fast.storage.parquet_footer import values_by_column

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "old": {"version": "1.0", "compression": "none", "write_statistics": False},
    "an index": {"write_page_index": True, "write_page_checksum": True, "store_schema": False},
    "small groups": {"row_group_size": 7, "compression": "zstd"},
}


def table() -> pa.Table:
    return pa.table(
        {
            "states": pa.array([[[0.5] * 3] * (i % 4) for i in range(50)], pa.list_(pa.list_(pa.float32(), 3))),
            "nested": pa.array([{"a": i, "b": [[1.0, 2.0]] * (i % 3)} for i in range(50)]),
            "é": pa.array([True, None] * 25),
        }
    )


@pytest.mark.parametrize("way", WAYS)
def test_it_is_what_pyarrow_reads(way, tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(table(), path, **WAYS[way])
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    assert values_by_column(path) == [(column.path_in_schema, column.num_values) for column in columns]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("footer") / "t.parquet"
    pq.write_table(table(), path)
    return path


@given(data=st.data())
def test_a_damaged_one_is_read_or_refused(whole, data):
    raw = bytearray(whole.read_bytes())
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(start, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = whole.with_name("damaged")
    path.write_bytes(raw)
    try:
        assert all(isinstance(count, int) for _, count in values_by_column(path))
    except ValueError:
        return


def test_what_counts_more_than_there_is_takes_no_time(tmp_path):
    """Lists of maps of truth values: none of a million has a byte of its own but must have one."""
    inner = bytes([0xFF, 0xFF, 0x3F, 0x11])  # a map of a million truths by truths
    footer = bytes([0x19, 0xFB]) + bytes([0xFF, 0xFF, 0x3F]) + inner * 300_000
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ValueError, match="footer"):
        values_by_column(path)
