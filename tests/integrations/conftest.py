"""The other tools, as docs/integrations.md shows them: its examples run beside ./my-model and prompts.jsonl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .page import PAGE, PASSWORD, ROOT, block


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: empty but for ./my-model, the bundled one as a user keeps his; other tools' folders in it."""
    shutil.copytree(ROOT / "invert_fast" / "bundled", tmp_path / "my-model")
    config = tmp_path / "my-model" / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    (tmp_path / "my-model" / "generation_config.json").write_text('{"bos_token_id": 4095, "eos_token_id": 4095}')
    lines = [json.dumps({"text": text}) + "\n" for text in (PASSWORD, "Meet me at nine.")]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return tmp_path


@pytest.fixture
def example(folder: Path) -> Callable[[str], dict[str, Any]]:
    """Runs the example of a section of the page; returns the names that it leaves."""

    def run(section: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(compile(block(section), f"{PAGE.name}: {section}", "exec"), names)
        return names

    return run


@pytest.fixture
def apart(folder: Path) -> Callable[..., str]:
    """Runs code in a process of its own, for packages that change others; returns what it prints."""

    def run(code: str, *paths: Path) -> str:
        (folder / "example.py").write_text(code, encoding="utf-8")
        search = os.pathsep.join([*map(str, paths), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": search, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(
            [sys.executable, "example.py"], env=environment, capture_output=True, text=True, timeout=1200, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
