"""Looking up the nearest rows of the tokens that occur, against one product with the whole table.

    pytest bench/bench_neighbours.py --benchmark-only

`extra_info`: seconds for 1,000 tokens, and the ratio to scoring them by one matrix product in full width.
"""

import statistics
import time

import pytest
import torch

from invert_fast.model.neighbours import Neighbours

TOKENS, ROUNDS = 1000, 3
SHAPES = [(32_000, 2048), (151_936, 1536), (262_144, 640)]


@pytest.mark.parametrize(("size", "width"), SHAPES)
def bench_lookup(benchmark, size, width):
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, width)  # rows of trained models differ most in a few directions
    rows = torch.randn(size, width, generator=generator) * scale
    found = Neighbours(rows, torch.ones(size, dtype=torch.bool), torch.arange(size), torch.ones(size))
    found.of(torch.arange(8))  # the directions, once
    queries = iter(torch.arange(8, size).split(TOKENS))

    def product() -> float:
        start = time.perf_counter()
        torch.mm(rows[:TOKENS], rows.T)
        return time.perf_counter() - start

    in_full = statistics.median(product() for _ in range(ROUNDS))
    benchmark.pedantic(lambda: found.of(next(queries)), rounds=ROUNDS)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update(seconds=seconds, ratio_to_product=seconds / in_full)
    print(f"\nV {size:,}, D {width}: {TOKENS} tokens in {seconds:.2f} s, {seconds / in_full:.2f} x one full product")
