"""Files from anybody: read, or refused in words. Never a crash, a hang, a file anywhere else, or memory by a number in
them. `make fuzz` looks for longer."""

from __future__ import annotations

import base64
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
FOUND = (  # by `make fuzz`: what ended in an error that was none of ours, or was read as what it is not
    (
        "stream.arrow",
        "/////9AAAAAQAAAAAAAKAAwABgAFAAgACgAAAAABBAAMAAAACAAIAAAABAAIAAAABAAAAAEAAAAEAAAApP///wAAAQwQAAAAHAAAAAQA"
        "AAABAAAAFAAAAAYAAABoaWRkZW4AANT////Q////AAABDBQAAAAgAAAABAAAAAEAAAAoAAAABAAAAGl0ZW0AAAAABAAEAAQAAAAQABQA"
        "CAAGAAcADAAAABAAEAAAAAAAAQMQAAAAHAAAAAQAAAAAAAAABAAAAGl0ZW0AAAYACAAGAAYAAAAAAAEAAAAQABQACAAGAAcADAAAABAA"
        "EAAAAAAAAQMQAAAAHAAA/////+gAAAAUAAAAAAAAAAwAFgAGAAUACAAMAAwAAAAAAwQAGAAAAAAAABAAAAAAAAAAIAAAAACLAAAAMAAA"
        "AAAAAAAAAAAAAAAAADC/+FgrDr+OJRg/YF7FP6vgAT/zTRe/SKSpvzAUQT77dY2922b9viTMAAAAAAAAAFBBUjF9Rr4sGuQ+m6KpP///"
        "//8AAAAA",
    ),
    (
        "texts.parquet",
        "UEFSMRUEFcADFcgDTBVwFQASAADgAfDfhRuQv4qAk7/WS4C+XSXevhVFWT+DJzE/bcyhvsFfB8A4AaU+9LShSKIsTOM8UCRNVGVdWKZt"
        "XOd9YCiOZGmeaKqubOu+cCzPdG3fFQQZbDUAGAZzY2hlbWEVAgAzAhgGaGlkZGVuFQIVBkw8AAAANQQYBGxpc3QVAgA1AhgHZWxlbWVu"
        "dBUCFQZMPAAAADUEGARsaXN0FQIAFQglAhgHZWxlbWVudAAWBBkcGRwmABwVCBk1AAYQGVgGaGlkZGVuBGxpc3QHZWxlbWVudARsaXN0"
        "B2VsZW1lbnQVAhZwFswFFtIFJvADJggcGAROL+0/GATBXwfAFgAoBE4v7T8YBMFfB8AREQAZLBUEFQAVAgAVABUQFQIAPCk2BApiGWYA"
        "AAAAAHAAAAAWzAUWBCYIFtIFABkcGAxBUlJPVzpzY2hlbWEYoAIvLy8vLzlBQUFBQVFBQUFBQUFBS0FBd0FCZ0FGQUFnQUNnQUFBQUFC"
        "QkFBTUFBQUFDQUFJQUFBQUJBQUlBQUFBQkFBQUFBRUFBQUFFQUFBQXBQLy8vd0FBQVF3VUFBQUFIQUFBQUFRQUFBQUJBQUFBRkFBQUFB"
        "WUFBQUJvYVdSa1pXNEFBTlQvLy8vUS8vLy9BQUFCREJRQUFBQWdBQUFBQkFBQUFBRUFBQUFvQUFBQUJBQUFBR2wwWlcwQUFBQUFCQUFF"
        "QUFRQUFBQVFBQlFBQ0FBR0FBY0FEQUFBQUJBQUVBQUFBQUFBQVFNUUFBQUFIQUFBQUFRQUFBQUFBQUFBQkFBQUFHbDBaVzBBQUFZQUNB"
        "QUdBQVlBQUFBQUFBRUEAGCBwYXJxdWV0LWNwcC1hcnJvdyB2ZXJzaW9uIDI2LjAuMRkcHAAAAEQCAABQQVIx",
    ),
    (
        "stream.arrow",
        "/////9AAAAAQAAAAAAAKAAwABgAFAAgACgAAAAABBAAMAAAACAAIAAAABAAIAAAABAAAAAEAAAAEAAAApP///wAAAQwUAAAAHAAAAAQA"
        "AAABAAAAFAAAAAYAAABoaWRkZW4AANT////Q////AAABDBQAAAAgAAAABAAAAAEAAAAoAAAABAAAAGl0ZW0AAAAABAAEAAQAAAAQABQA"
        "CAAGAAcADAAAABAAEAAAAAAAAQMQAAAAHAAAAAQAAAAAAAAABAAAAGl0ZW0AAAYACAAGAAYAAAAAAAEA/////+gAAAAUAAAAAAAAAAwA"
        "FgAGAAUACAAMAAwAAAAAAwQAGAAAABABAAAAAAAAAAAKABgADAAEAAgACgAAAHwAAAAQAAAAAgAAAAAAAAAAAAAABgAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAAEAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAIAAAAAAAAAAwAAAAAAAAAAAAAAAAAAAAMAAAAAAA"
        "AADgAAAAAAAAAAAAAAADAAAAAgAAAAAAAAAAAAAAAAAAAAcAAAAAAAAAAAAAAAAAAAA4AAAAAAAAAAAAAAAAAAAAAAAAAAMAsgAHAAAA"
        "AAAAAAAAAAAIAAAAEAAAABgAAAAgAAAAKAAAADAAAAA4AAAAhRuQv4qAk7/WS4C+XSXevhVFWT+DJzE/bcyhvsFfB8A4AaU+9LShv/8w"
        "sz67w50+d2/1PZNrnj+O8o4/fDZ9vsIjrb9GFNm/BBARP10jSz+LTRk/Ww3Hv8rGrr5OL+0/awxAPyvjFb/rjjG+pOE7PsDWsT8ADcs/"
        "nEByPzP7V7/IEx2/ZGcBPShA/L5wYH4+0B/hPtY35j34CiQ/PN/hPlJ1Uj6fkea+LrUSv/grDr+OJRg/YF7FP6vgAT/zTRe/SKSpvzAU"
        "QT77dY2922b9viR6v789fUa+LBrkPpuiqT//////AAAAAA==",
    ),
)


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


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_is_refused(name, data, tmp_path):
    assert not read(READERS[name], tmp_path, base64.b64decode(data))


@needs_limits
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=settings.default.max_examples * 3 // 5, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hostile_files_are_read_or_refused(name, tmp_path, time_limit: TimeLimit, data):
    reader = READERS[name]
    with memory_limit(), time_limit(SECONDS):
        read(reader, tmp_path, data.draw(mutated(reader.whole)))
