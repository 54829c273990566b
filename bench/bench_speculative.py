"""Speculative inversion against a bare batched forward pass of the same tokens, in one process.

    pytest bench/bench_speculative.py --benchmark-only [-k bundled] [--benchmark-json out.json]

The answer is checked before anything is timed: a row with exact_match below 1 is a failure, not a figure. `extra_info`
holds the ratio to the bare pass, forward tokens a token, tokens/s, peak memory, the lens and what was certified. On a
CPU, shapes that would take minutes are left out unless INVERT_FAST_BENCH_FULL is set. The learned lens is used where
one was fitted (`invert-fast fit`) or ships with the model. Workloads of up to two thousand tokens are measured warm,
after 70 calls; the larger ones after one.
"""

import os
import statistics
import time
from pathlib import Path

import pytest
import torch
from workloads import (
    FULL,
    GPT2_SMALL,
    LLAMA_8B,
    MODELS,
    bare_forward,
    load,
    median_seconds,
    peak_mib,
    random_rows,
    real_rows,
    versions,
)

from invert_fast.baselines import sipit
from invert_fast.baselines.common import capture as capture_plainly
from invert_fast.lens import choose_lens

ROUNDS = 5
# Of a few tokens: milliseconds each, and after so many calls their passes are recorded. A rehearsal measures nothing.
WARM, WARM_ROUNDS = (2, 3) if os.environ.get("INVERT_FAST_REHEARSE") else (70, 25)
_FEW = 2048  # tokens: passes over more are not recorded
SHAPES = [(texts, length) for texts in (1, 16, 256) for length in (10, 32, 128, 1024)]
_CPU_FLOPS = 2e12  # of one bare pass: more than this is minutes for all rounds


@pytest.fixture(scope="module", params=[*MODELS, GPT2_SMALL], ids=lambda name: Path(name).name)
def inverter(request):
    made = load(request.param)
    rows, _ = real_rows(made, 1, 8)
    made.invert(made.capture(rows))  # fits a linear lens if need be, and calibrates, before anything is timed
    return made


def row(benchmark, inverter, report_row, name: str, rows: list[list[int]], source: str) -> None:
    """Check, measure and report one workload."""
    tokens = sum(map(len, rows))
    parameters = sum(p.numel() for p in inverter.decoder.body.parameters())
    if inverter.decoder.device.type == "cpu" and 2 * parameters * tokens > _CPU_FLOPS and not FULL:
        pytest.skip(
            f"{tokens} tokens of {parameters / 1e6:.0f} M parameters take minutes on a CPU (INVERT_FAST_BENCH_FULL=1)"
        )
    if len(rows[0]) > inverter.decoder.max_length:
        pytest.skip(f"{len(rows[0])} tokens are more than this model's {inverter.decoder.max_length} positions")
    states = inverter.capture(rows)
    found = inverter.invert(states)
    exact = sum(r.token_ids.tolist() == ids for r, ids in zip(found, rows, strict=True)) / len(rows)
    assert exact == 1.0, f"exact match {exact}"
    rounds, warm = (WARM_ROUNDS, WARM) if tokens <= _FEW else (ROUNDS if tokens < 10_000 else 3, 1)
    if inverter.decoder.device.type == "cuda":  # nothing is recorded there
        rounds, warm = min(rounds, 9), 2
    bare = bare_forward(inverter, rows, rounds)
    memory = peak_mib(lambda: inverter.invert(states))
    benchmark.pedantic(inverter.invert, args=(states,), rounds=rounds, warmup_rounds=warm)
    bare = statistics.median([bare, bare_forward(inverter, rows, rounds)])  # before and after: the machine drifts
    seconds = benchmark.stats.stats.median
    lens = choose_lens(inverter.decoder, inverter.vocabulary, "auto", "float32")
    benchmark.extra_info |= {
        "ratio_to_bare_forward": round(seconds / bare, 3),
        "forward_tokens_per_token": round(sum(r.cost.forward_tokens for r in found) / tokens, 4),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_mib": round(memory, 1),
        "exact_match": exact,
        "certified": sum(r.certified for r in found) / len(rows),
        "lens": lens.kind,
        "text": source,
        **versions(inverter),
    }
    report_row(name, benchmark.extra_info)


@pytest.mark.parametrize(("texts", "length"), SHAPES, ids=lambda n: str(n))
def bench_texts(benchmark, inverter, report_row, texts, length):
    rows, source = real_rows(inverter, texts, length)
    name = Path(benchmark.params["inverter"]).name
    row(benchmark, inverter, report_row, f"{name}, {texts} × {length}", rows, source)


def bench_random_tokens(benchmark, inverter, report_row):
    name = Path(benchmark.params["inverter"]).name
    rows = random_rows(inverter, 256, 32)
    row(benchmark, inverter, report_row, f"{name}, 256 × 32 random tokens", rows, "random tokens")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a model of 8 billion parameters needs a CUDA GPU")
@pytest.mark.parametrize(("texts", "length"), [(64, 32), (1, 32), (16, 512)], ids=lambda n: str(n))
def bench_eight_billion(benchmark, large, report_row, texts, length):
    row(benchmark, large, report_row, f"{LLAMA_8B}, {texts} × {length}", random_rows(large, texts, length), "random")


@pytest.fixture(scope="module")
def large():
    made = load(LLAMA_8B)
    made.invert(made.capture(random_rows(made, 1, 8)))
    return made


@pytest.mark.parametrize("texts", [1, 256])
def bench_against_sipit(benchmark, report_row, texts):
    """The published algorithm, unbatched as it is, on two texts; ours on `texts` of the same length, same process."""
    inverter = load("bundled")
    rows, source = real_rows(inverter, texts, 10)
    theirs = []
    for ids in rows[:2] if texts > 1 else rows:
        # its accept test forgives no rounding: it gets states that were made as it makes them
        hidden = capture_plainly(inverter.decoder.model, ids, prefix_by_prefix=True)
        start = time.perf_counter()
        result = sipit.invert(inverter.decoder.model, hidden)
        theirs.append((time.perf_counter() - start) / len(ids))
        assert result.token_ids == ids
    states = inverter.capture(rows)
    found = inverter.invert(states)
    assert all(r.certified and r.token_ids.tolist() == ids for r, ids in zip(found, rows, strict=True))
    rounds, warm = (WARM_ROUNDS, WARM) if texts == 1 else (ROUNDS, 1)
    benchmark.pedantic(inverter.invert, args=(states,), rounds=rounds, warmup_rounds=warm)
    seconds, tokens = benchmark.stats.stats.median, 10 * texts
    bare = bare_forward(inverter, rows, rounds)
    benchmark.extra_info |= {
        "ratio_to_bare_forward": round(seconds / bare, 3),
        "forward_tokens_per_token": round(sum(r.cost.forward_tokens for r in found) / tokens, 4),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_mib": 0.0,
        "exact_match": 1.0,
        "certified": 1.0,
        "sipit_tokens_per_second": round(1 / statistics.mean(theirs), 2),
        "times_sipit": round(statistics.mean(theirs) * tokens / seconds, 1),
        "text": source,
        **versions(inverter),
    }
    report_row(
        f"bundled, {texts} × 10: {benchmark.extra_info['times_sipit']:,.0f} × SIPIT's tokens/s", benchmark.extra_info
    )


@pytest.mark.parametrize("texts", [1, 256])
def bench_lens_alone(benchmark, texts):
    """What drafting takes of the whole: proxies and their best tokens for `texts` × 32, nothing verified."""
    inverter = load("bundled")
    rows, _ = real_rows(inverter, texts, 32)
    hidden = torch.stack([s.hidden for s in inverter.capture(rows)])
    lens = choose_lens(inverter.decoder, inverter.vocabulary)
    bare = bare_forward(inverter, rows, ROUNDS)
    benchmark.pedantic(lens.draft, args=(hidden,), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info |= {
        "ratio_to_bare_forward": round(benchmark.stats.stats.median / bare, 3),
        "twin_to_bare_forward": round(
            median_seconds(lambda: inverter.decoder.states(torch.tensor(rows)), ROUNDS) / bare, 3
        ),
        **versions(inverter),
    }
