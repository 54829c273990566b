"""What a command costs before and beside its work, against `python -c "import torch"` in the same run.

    pytest bench/bench_startup.py --benchmark-only

Every answer is checked before it is timed. A round starts both processes one after the other, so that both meet the
same machine; `extra_info` has the medians and their ratio. The inversion is of one text of 32 tokens with the bundled
model, captured before, and its calibration is in the cache: all but a fraction of a second of it is start.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from invert_fast import __version__
from invert_fast.cli.demo import sentences

ROUNDS = 7
TOKENS = 32
COMMAND = [sys.executable, "-m", "invert_fast"]
TORCH = [sys.executable, "-c", "import torch"]


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def row(benchmark, startup_row, name: str, command: list[str], prepare=lambda: None) -> None:
    """Measure and report one command. prepare: what has to be done before each run."""
    beside: list[float] = []

    def before() -> None:
        start = time.perf_counter()
        run(TORCH)
        beside.append(time.perf_counter() - start)
        prepare()

    benchmark.pedantic(run, args=(command,), setup=before, rounds=ROUNDS, warmup_rounds=1)
    seconds, torch = benchmark.stats.stats.median, statistics.median(beside[1:])
    benchmark.extra_info |= {
        "seconds": round(seconds, 3),
        "import_torch_seconds": round(torch, 3),
        "ratio_to_import_torch": round(seconds / torch, 3),
        "cores": os.cpu_count(),
    }
    startup_row(name, benchmark.extra_info)


def bench_help(benchmark, startup_row):
    command = [*COMMAND, "--help"]
    assert "states file → recovered.jsonl" in run(command)
    row(benchmark, startup_row, "--help", command)


def bench_version(benchmark, startup_row):
    command = [*COMMAND, "--version"]
    assert run(command) == f"invert-fast {__version__}\n"
    row(benchmark, startup_row, "--version", command)


def bench_invert(benchmark, startup_row, tmp_path, monkeypatch):
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path))
    text, prompts = " ".join(sentences()[:3]), tmp_path / "prompts.txt"
    states, output = tmp_path / "states.safetensors", tmp_path / "recovered.jsonl"
    prompts.write_text(text + "\n", encoding="utf-8")
    model = ["--model", "bundled", "--device", "cpu"]
    run([*COMMAND, "capture", *model, "--input", prompts, "--output", states, "--max-tokens", str(TOKENS)])
    command = [*COMMAND, "invert", *model, str(states), "--output", str(output)]
    run(command)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["certified"]
    assert len(found["token_ids"]) == TOKENS
    assert text.startswith(found["text"])
    row(benchmark, startup_row, f"invert, 1 × {TOKENS} tokens", command, prepare=output.unlink)
