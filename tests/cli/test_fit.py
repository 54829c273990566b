"""`invert-fast fit` fits, reports and writes, and a kill leaves the cache whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..families import VOCAB, make, texts


def run(*args: str, cache: Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "invert_fast", "fit", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "INVERT_FAST_CACHE": str(cache)},
        timeout=300,
        **options,
    )


@pytest.fixture
def saved(tmp_path) -> Path:
    """A model folder that the command can load."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "model"
    make("gpt2").save_pretrained(folder)
    words = Fast(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder


def test_the_command_fits_reports_and_writes(saved, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(" ".join(f"w{i}" for i in ids) for ids in texts(60, 60)))
    out, kept = tmp_path / "lens.safetensors", tmp_path / "kept"
    args = ["--model", str(saved), "--steps", "3", "--text", str(prompts), "--output", str(out), "--json"]
    done = run(*args, cache=kept)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] == 3
    assert set(report["top1"]) == {"written", "random"}
    assert out.read_bytes() == Path(report["path"]).read_bytes()
    shown = run("--model", str(saved), "--lens", "linear", cache=kept)
    assert shown.returncode == 0
    assert "linear top-1" in shown.stdout
    for wrong in (["--minutes", "0"], ["--noise", "x"], ["--lens", "linear", "--steps", "3"]):
        refused = run("--model", str(saved), *wrong, cache=kept)
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr


def test_a_killed_fit_leaves_the_cache_whole_and_the_next_one_ends(saved, tmp_path):
    kept = tmp_path / "kept"
    command = [sys.executable, "-m", "invert_fast", "fit", "--model", str(saved), "--steps", "100000"]
    process = subprocess.Popen(
        command, env={**os.environ, "INVERT_FAST_CACHE": str(kept)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(kept.glob("linear-*.safetensors")):
        time.sleep(0.2)
    time.sleep(2.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not any(kept.glob("learned-*"))
    done = run("--model", str(saved), "--steps", "3", cache=kept)
    assert done.returncode == 0, done.stderr
    assert len(list(kept.glob("learned-*.safetensors"))) == 1
