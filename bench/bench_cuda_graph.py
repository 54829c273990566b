"""The captured step against the same step run kernel by kernel, and the gradient modes from end to end, on a GPU.

    pytest bench/bench_cuda_graph.py --benchmark-only [-k "steps and 64"] [--benchmark-json out.json]

A model of GPT-2 small's shape with random weights: its costs are real. Both ways of stepping must reach the same
proxies before they are timed. INVERT_FAST_REHEARSE=1 runs all of it on a tiny model, on any machine: that proves the
bench, and its figures mean nothing.
"""

import os

import pytest
import torch
import transformers
from workloads import GPT2_SMALL, load, median_seconds, random_rows, versions

from invert_fast import Continuous, Inverter, PerStepProjection
from invert_fast.engine.attempts import Attempts
from invert_fast.engine.protocol import Context
from invert_fast.model.lanes import Lanes

REHEARSE = bool(os.environ.get("INVERT_FAST_REHEARSE"))
LANES = [1, 3] if REHEARSE else [1, 64, 512, 4096]
SEARCH = ["float32", "tf32", "bfloat16"]
PREFIX, ROUND, ROUNDS = 10, 32, 3

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or REHEARSE),
    reason="CUDA graphs need a CUDA GPU (INVERT_FAST_REHEARSE=1 runs this small, without one)",
)


@pytest.fixture(scope="module")
def inverter() -> Inverter:
    if not REHEARSE:
        return load(GPT2_SMALL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=200, n_positions=64)
        model = transformers.AutoModelForCausalLM.from_config(config)
    return Inverter(model.requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu"))


class Search:
    """A continuous search that never ends, in every lane after a prefix: `step()` makes ROUND steps."""

    def __init__(self, inverter: Inverter, lanes: int, graphed: bool, search_dtype: str = "float32"):
        decoder, vocabulary = inverter.decoder, inverter.vocabulary
        rows = torch.tensor(random_rows(inverter, lanes, PREFIX + 1), device=decoder.device)
        self.slots = torch.arange(lanes)
        self.lanes = Lanes(decoder, lanes, PREFIX + 1)
        states = torch.cat([decoder.states(part) for part in rows.split(256)])
        self.lanes.load(self.slots, list(range(lanes)), list(states))
        for part in self.slots.split(256):
            self.lanes.draft(part, rows[part, :PREFIX])
            everything = torch.full_like(part, PREFIX)
            self.lanes.commit(part, rows[part, :PREFIX], everything, torch.arange(len(part)))
        strategy = Continuous(10**6, 1, loss_threshold=0.0, round=ROUND, cuda_graph=graphed, search_dtype=search_dtype)
        attempts = Attempts(lanes, vocabulary.size, decoder.width, decoder.device)
        self.proposer = strategy.bind(Context(decoder, vocabulary, inverter.calibrate(), self.lanes, attempts))
        self.proposer.begin(self.slots)

    @torch.no_grad()
    def step(self) -> None:
        self.proposer.propose(self.slots)

    @property
    def why_not(self) -> str | None:
        return None if self.proposer.graphed is None else self.proposer.graphed.why_not


@pytest.mark.parametrize("search_dtype", SEARCH)
@pytest.mark.parametrize("lanes", LANES)
def bench_steps(benchmark, inverter, step_row, lanes, search_dtype):
    """One step of all lanes: as a graph, and (in float32 only, which it always is) kernel by kernel."""
    eager, graph = Search(inverter, lanes, False), Search(inverter, lanes, True, search_dtype)
    eager.step()
    graph.step()
    apart = float((eager.proposer.proxies.value - graph.proposer.proxies.value).abs().max())
    assert graph.proposer.proxies.value.isfinite().all()
    if search_dtype == "float32":
        assert apart < 1e-2, f"proxies are {apart} apart after {ROUND} steps of Adam"
    if not REHEARSE:
        assert graph.why_not is None, graph.why_not
    plain = median_seconds(eager.step, ROUNDS) / ROUND

    def timed():
        graph.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=ROUNDS, warmup_rounds=1)
    took = benchmark.stats.stats.median / ROUND
    benchmark.extra_info |= {
        "lanes": lanes,
        "search_dtype": search_dtype,
        "milliseconds_per_step": round(took * 1e3, 4),
        "eager_milliseconds_per_step": round(plain * 1e3, 4),
        "times_faster_than_eager": round(plain / took, 2),
        "microseconds_per_lane_step": round(took / lanes * 1e6, 3),
        "proxies_apart": apart,
        "graph": graph.why_not or "captured",
        **versions(inverter),
    }
    step_row(f"{lanes} lanes, {search_dtype}", benchmark.extra_info)


def strategies(lanes: int) -> dict[str, Continuous | PerStepProjection]:
    if REHEARSE:
        return {
            "continuous": Continuous(8, 16, cuda_graph=True),
            "sipit": PerStepProjection(max_steps=4, cuda_graph=True),
        }
    return {"continuous": Continuous.baseline(search_dtype="tf32"), "sipit": PerStepProjection()}


@pytest.mark.parametrize("lanes", [512, 64, 1] if not REHEARSE else LANES)
@pytest.mark.parametrize("mode", ["continuous", "sipit"])
def bench_gradient_modes(benchmark, inverter, mode_row, lanes, mode):
    """Two tokens a lane, everything included; a graph is captured afresh, as for every call. Exactness is reported."""
    rows = random_rows(inverter, lanes, 2)
    states, strategy = inverter.capture(rows), strategies(lanes)[mode]
    found = benchmark.pedantic(inverter.invert, args=(states, strategy), kwargs={"batch_size": lanes}, rounds=1)
    tokens = 2 * lanes
    benchmark.extra_info |= {
        "lanes": lanes,
        "mode": mode,
        "milliseconds_per_token": round(benchmark.stats.stats.median / tokens * 1e3, 3),
        "steps_per_token": round(sum(int(r.steps.sum()) for r in found) / tokens, 1),
        "forward_tokens_per_token": round(sum(r.cost.forward_tokens for r in found) / tokens, 1),
        "exact_match": sum(r.token_ids.tolist() == ids for r, ids in zip(found, rows, strict=True)) / lanes,
        "certified": sum(r.certified for r in found) / lanes,
        **versions(inverter),
    }
    assert all(r.token_ids.tolist() == ids for r, ids in zip(found, rows, strict=True) if r.certified)
    mode_row(f"{mode}, {lanes} lanes", benchmark.extra_info)
