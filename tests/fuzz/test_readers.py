"""Files from anybody: read, or refused in words. Never a crash, a hang, a file anywhere else, or memory by a number in
them. `make fuzz` looks for longer."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from invert_fast import InputError

from ..conftest import TimeLimit
from ..memory import memory_limit, needs_limits
from .hostile import mutated
from .readers import READERS, Reader

SECONDS = 60.0


def read(reader: Reader, folder: Path, data: bytes) -> bool:
    """Whether it was read; else it was refused, in one line that has a next step."""
    path = folder / reader.name
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
        said = ""
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or ":" in said, "what to do?"
    assert [entry.name for entry in folder.iterdir()] == [reader.name]
    return not said


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name, tmp_path):
    assert read(READERS[name], tmp_path, READERS[name].whole)


@needs_limits
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=settings.default.max_examples * 3 // 5, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hostile_files_are_read_or_refused(name, tmp_path, time_limit: TimeLimit, data):
    reader = READERS[name]
    with memory_limit(), time_limit(SECONDS):
        read(reader, tmp_path, data.draw(mutated(reader.whole)))
