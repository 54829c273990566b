"""Processes that take turns at an entry of the cache folder."""

from __future__ import annotations

import logging
import threading

from invert_fast.storage import lock
from invert_fast.storage.lock import in_turn


def test_one_waits_for_the_other_and_says_so(monkeypatch, tmp_path, caplog):
    """A lock is of an open file: two of one process exclude each other as those of two do."""
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(lock, "_SAID", 0.01)
    caplog.set_level(logging.INFO, "invert_fast")
    order, said = [], threading.Event()

    class Heard(logging.Handler):
        def emit(self, record):
            said.set()

    def second():
        with in_turn("entry", 60.0, "waiting for the first"):
            order.append("second")

    log, heard = logging.getLogger("invert_fast"), Heard()
    log.addHandler(heard)
    try:
        thread = threading.Thread(target=second)
        with in_turn("entry", 60.0, "waiting"):
            thread.start()
            assert said.wait(60)
            order.append("first")
        thread.join(60)
    finally:
        log.removeHandler(heard)
    assert order == ["first", "second"]
    assert caplog.messages == ["waiting for the first"]


def test_whoever_waits_too_long_or_cannot_lock_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path))
    with in_turn("entry", 60.0), in_turn("another", 60.0), in_turn("entry", 0.01):
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["another.lock", "entry.lock"]
    (tmp_path / "file").write_text("no folder")
    for nothing in ("off", str(tmp_path / "file" / "cache")):
        monkeypatch.setenv("INVERT_FAST_CACHE", nothing)
        with in_turn("entry", 60.0), in_turn("entry", 60.0):
            pass
