"""`auto` on CPU or GPU against a bare batched forward pass of the same tokens, in one process.

    pytest bench/bench_auto.py --benchmark-only [--benchmark-json out.json]

The answer is checked before anything is timed: a row with exact_match below 1 is a failure, not a figure. Texts are the
first documents of C4 in `$INVERT_FAST_SHARED/text/c4_eval.jsonl` where that exists, else the package's own sentences
repeated. `extra_info` holds the ratio to the bare pass, forward tokens a token, tokens/s and what was certified.
"""

import json
import os
import platform
import statistics
import time
from pathlib import Path

import pytest
import torch

from invert_fast import Inverter, demo

ROUNDS = 5
SHARED = Path(os.environ.get("INVERT_FAST_SHARED", Path(__file__).parents[2] / "shared"))
SHAPES = [(1, 10), (1, 32), (16, 32), (256, 10), (256, 32), (64, 128), (4, 1000)]
MODELS = ["bundled", *(str(p) for p in sorted((SHARED / "models").glob("*")) if (p / "config.json").exists())]


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: Path(name).name)
def inverter(request):
    made = Inverter.from_pretrained(request.param)
    made.invert(made.capture([demo.sentences()[0]]))  # fits the lens and calibrates before anything is timed
    return made


def token_rows(inverter: Inverter, texts: int, length: int) -> tuple[list[list[int]], str]:
    """`texts` rows of exactly `length` tokens of real text, and where it is from."""
    source = SHARED / "text" / "c4_eval.jsonl"
    if source.exists():
        documents = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    else:
        documents = demo.sentences()
    encoded = [inverter.encode(document) for document in documents]
    rows = [row[:length] for row in encoded if len(row) >= length]
    joined = [i for row in encoded for i in row]  # long rows, or too few documents: run documents together
    while len(rows) < texts:
        start = (len(rows) * length) % max(1, len(joined) - length)
        rows.append((joined[start:] + joined)[:length])
    return rows[:texts], source.name if source.exists() else "bundled sentences"


def bare_forward(inverter: Inverter, ids: torch.Tensor) -> float:
    """Median seconds of the model's own forward pass over the same rows, in batches of 256."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for part in ids.split(256):
            inverter.decoder.capture(part)
        if ids.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.mark.parametrize(("texts", "length"), SHAPES)
def bench_auto(benchmark, inverter, report_row, texts, length):
    if length > inverter.decoder.max_length:
        pytest.skip(f"{length} tokens are more than this model's {inverter.decoder.max_length} positions")
    rows, source = token_rows(inverter, texts, length)
    states = inverter.capture(rows)
    found = inverter.invert(states)
    exact = sum(r.token_ids.tolist() == row for r, row in zip(found, rows, strict=True)) / texts
    assert exact == 1.0, f"exact match {exact}"
    ids = torch.tensor(rows, device=inverter.decoder.device)
    bare_forward(inverter, ids)
    bare = bare_forward(inverter, ids)
    benchmark.pedantic(inverter.invert, args=(states,), rounds=ROUNDS, warmup_rounds=1)
    seconds, tokens = benchmark.stats.stats.median, texts * length
    benchmark.extra_info |= {
        "ratio_to_bare_forward": round(seconds / bare, 3),
        "forward_tokens_per_token": round(sum(r.cost.forward_tokens for r in found) / tokens, 4),
        "tokens_per_second": round(tokens / seconds, 1),
        "exact_match": exact,
        "certified": sum(r.certified for r in found) / texts,
        "text": source,
        "device": f"{inverter.decoder.device}, {torch.get_num_threads()} threads, {platform.machine()}",
        "torch": torch.__version__,
    }
    report_row(f"{Path(benchmark.params['inverter']).name}, {texts} × {length}", benchmark.extra_info)
