"""A real model on this machine: what the first use takes, what later ones do, and how it falls with use.

    INVERT_FAST_GEMMA=./gemma-3-270m pytest bench/bench_real.py --benchmark-only [-k first_use]

Texts of 33 tokens of C4 with the tokenizer's BOS. Figures of `again` are of texts that the lens has not learned from:
learning is switched off there. `use` lets it learn, from other texts than those it is measured on (minutes: set
INVERT_FAST_BENCH_FULL). Mean costs hang on a token in a thousand that no order names early; `median` is of a text.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from workloads import FULL, SHARED, bare_forward, median_seconds, versions

from invert_fast import Inverter
from invert_fast.lens import forget

FOLDER = Path(os.environ.get("INVERT_FAST_GEMMA", "~/.cache/invert_fast_models/gemma-3-270m")).expanduser()
TEXTS, TOKENS, ROUNDS = 32, 33, 3
MOST_GB = 4.0  # that first use may take: the weights of Gemma-3-270M are 1.07
C4 = SHARED / "text" / "c4_eval.jsonl"

pytestmark = pytest.mark.skipif(
    not ((FOLDER / "config.json").is_file() and C4.is_file()), reason=f"no Gemma-3-270M in {FOLDER}, or no {C4}"
)


def rows_of(inverter: Inverter) -> list[list[int]]:
    """All texts of C4 at hand that are long enough, cut to TOKENS tokens."""
    texts = (json.loads(line)["text"] for line in C4.read_text(encoding="utf-8").splitlines())
    return [row[:TOKENS] for row in (inverter.encode(text, special=True) for text in texts) if len(row) >= TOKENS]


def peak_gib() -> float:
    """The most memory that this process ever had, GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), 2)


def checked(inverter: Inverter, rows: list[list[int]], states) -> dict:
    """Invert, and what it cost; a text that is not exact is a failure, not a figure."""
    found = inverter.invert(states)
    tokens = [row.cost.forward_tokens for row in found]
    assert [r.token_ids.tolist() for r in found] == rows
    assert all(r.certified for r in found)
    return {
        "forward_tokens_per_token": round(sum(tokens) / sum(map(len, rows)), 2),
        "median_forward_tokens_per_token": round(statistics.median(tokens) / TOKENS, 2),
    }


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INVERT_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("INVERT_FAST_SHARPEN", "on")
        yield Inverter.from_pretrained(FOLDER, device="cpu")


def bench_first_use(benchmark, tmp_path):
    """From the start of a process, with an empty cache, to the last text certified."""
    env = {**os.environ, "INVERT_FAST_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", "import bench_real; bench_real.first_use()"]
    out = benchmark.pedantic(
        lambda: subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout, rounds=1
    )
    benchmark.extra_info.update(json.loads(out.splitlines()[-1]), seconds=round(benchmark.stats.stats.median, 1))
    print("\nfirst use:", dict(benchmark.extra_info))


def first_use() -> None:
    """What `bench_first_use` starts."""
    inverter = Inverter.from_pretrained(FOLDER, device="cpu")
    rows = rows_of(inverter)[:TEXTS]
    cost = checked(inverter, rows, inverter.capture(rows))
    assert peak_gib() * 1.073741824 < MOST_GB, f"a peak of {peak_gib()} GiB, expected less than {MOST_GB} GB"
    print(json.dumps({**cost, "peak_gib": peak_gib()}))


@pytest.mark.parametrize("texts", [TEXTS, 1])
def bench_again(benchmark, gemma, monkeypatch, texts):
    """With the lens at hand, on texts that it has not learned from."""
    _measure(benchmark, gemma, monkeypatch, rows_of(gemma)[TEXTS : TEXTS + texts], f"again, {texts}")


@pytest.mark.skipif(not FULL, reason="ten thousand tokens take minutes on a CPU (INVERT_FAST_BENCH_FULL=1)")
def bench_use(benchmark, gemma, monkeypatch):
    """After ten thousand tokens of use on other texts: what each thousand of them cost is printed."""
    rows = rows_of(gemma)[2 * TEXTS :]
    assert rows, "more texts than this"
    parts = [rows[i : i + TEXTS] for i in range(0, len(rows), TEXTS)]
    used = 0
    while used < 10_000:
        part = parts[(used // (TEXTS * TOKENS)) % len(parts)]
        print(f"\nafter {used:,} tokens: {checked(gemma, part, gemma.capture(part))}")
        used += len(part) * TOKENS
    _measure(benchmark, gemma, monkeypatch, rows_of(gemma)[TEXTS : 2 * TEXTS], "after use")


def _measure(benchmark, gemma: Inverter, monkeypatch, rows: list[list[int]], name: str) -> None:
    states = gemma.capture(rows)
    cost = checked(gemma, rows[:1], states[:1])  # calibrates, and fits the lens where that was not done
    monkeypatch.setenv("INVERT_FAST_SHARPEN", "off")
    forget(gemma.decoder)
    cost = checked(gemma, rows, states)
    bare = bare_forward(gemma, rows, ROUNDS)
    start = time.perf_counter()
    benchmark.pedantic(lambda: gemma.invert(states), rounds=1)
    seconds = statistics.median([time.perf_counter() - start, median_seconds(lambda: gemma.invert(states), 1)])
    benchmark.extra_info.update(cost, ratio_to_bare_forward=round(seconds / bare, 2), threads=torch.get_num_threads())
    benchmark.extra_info.update(versions(gemma), peak_gib=peak_gib())
    print(f"\n{name}: {cost}, {seconds / bare:.1f} bare passes of {bare:.2f} s, peak of the process {peak_gib()} GiB")
