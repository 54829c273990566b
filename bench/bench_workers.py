"""What a second process gains: `invert-fast invert --workers 2` against one process, each process with one thread.

    pytest bench/bench_workers.py --benchmark-only

Whole commands, on a file of states of the bundled model, with what the first use measures in the cache before. A round
runs all of them one after the other, so that they meet the same machine: one worker and two, on all texts and on two,
which is what starting costs. `extra_info` has medians: the seconds of each, and two ratios, of whole commands, and of
what is left of them without the start. Every output is checked: all of its texts, each exact and certified.
INVERT_FAST_BENCH_TEXTS sets another number of texts.
"""

import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
import workloads

from invert_fast.storage.recovered import read_recovered
from invert_fast.storage.states import write_states

TOKENS, TEXTS, ROUNDS = 128, int(os.environ.get("INVERT_FAST_BENCH_TEXTS", 2048)), 3
WORKERS = 2


def captured(folder: Path, texts: int) -> tuple[Path, list[list[int]]]:
    """A states file in bf16 (what its size asks for), and the tokens that it is of."""
    inverter = workloads.load("bundled")
    rows, _ = workloads.real_rows(inverter, texts, TOKENS)
    hidden = inverter.capture_ids(rows, torch.bfloat16)
    about = {"layer": "final_norm", "model": inverter.decoder.fingerprint(), "dtype": "bfloat16"}
    about |= {"compute_dtype": "float32"}
    path = folder / f"{texts}.safetensors"
    write_states(path, hidden, [TOKENS] * texts, inverter.decoder.width, torch.bfloat16, about)
    return path, rows


def seconds(workers: int, states: Path, rows: list[list[int]]) -> float:
    """Wall time of one command, its output checked. Each worker has one thread, as OMP_NUM_THREADS is divided."""
    output = states.with_suffix(".jsonl")
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "invert_fast", "invert", "--model", "bundled", "--device", "cpu", states]
    command += ["--output", output, "--workers", str(workers)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": str(workers)})
    took = time.perf_counter() - start
    found = read_recovered(output)
    assert [line["token_ids"] for line in found] == rows
    assert all(line["certified"] for line in found)
    return took


def bench_workers(benchmark, workers_row, tmp_path, monkeypatch):
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path / "cache"))
    all_texts, few = captured(tmp_path, TEXTS), captured(tmp_path, WORKERS)
    took: dict[tuple[int, bool], list[float]] = defaultdict(list)

    def run(workers: int, whole: bool) -> None:
        took[workers, whole].append(seconds(workers, *(all_texts if whole else few)))

    def beside() -> None:
        run(1, False)
        run(WORKERS, False)
        run(1, True)

    run(1, False)  # the first use
    took.clear()
    benchmark.pedantic(run, args=(WORKERS, True), setup=beside, rounds=ROUNDS)
    one, several, start, starts = (
        statistics.median(took[key]) for key in ((1, True), (WORKERS, True), (1, False), (WORKERS, False))
    )
    tokens = TEXTS * TOKENS
    benchmark.extra_info |= {
        "seconds_of_one": round(one, 2),
        "seconds": round(several, 2),
        "times_as_fast": round(one / several, 2),
        "start_of_one": round(start, 2),
        "start": round(starts, 2),
        "times_as_fast_once_started": round((one - start) / (several - starts), 2),
        "tokens_per_second_of_one": round(tokens / (one - start)),
        "tokens_per_second": round(tokens / (several - starts)),
        "cores": os.cpu_count(),
    }
    workers_row(f"{WORKERS} workers, {TEXTS} × {TOKENS}", benchmark.extra_info)
