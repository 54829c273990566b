"""What the benches share: models, rows of real text, the bare forward pass they are measured against, peak memory."""

import contextlib
import ctypes
import gc
import json
import os
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from invert_fast import Inverter
from invert_fast.cli import demo

SHARED = Path(os.environ.get("INVERT_FAST_SHARED", Path(__file__).parents[2] / "shared"))
FULL = bool(os.environ.get("INVERT_FAST_BENCH_FULL"))
GPT2_SMALL = "gpt2-small shape, random weights"
LLAMA_8B = "llama-3-8b shape, bf16, random weights"
MODELS = ["bundled", *(str(p) for p in sorted((SHARED / "models").glob("*")) if (p / "config.json").exists())]


def load(name: str) -> Inverter:
    """A model by name; `GPT2_SMALL` and `LLAMA_8B` are of those shapes with random weights: their costs are real, their
    texts are not."""
    if name == LLAMA_8B:
        return Inverter(_llama_8b())
    if name != GPT2_SMALL:
        return Inverter.from_pretrained(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config())
    return Inverter(model.requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu"))


def _llama_8b() -> transformers.PreTrainedModel:
    """Made on the GPU in bf16. What blocks add is scaled down by their number, as GPT-2 begins its training, and
    tokens are of unit variance: else no state would tell its token."""
    config = transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, weight in model.requires_grad_(False).named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    model.get_input_embeddings().weight.mul_(50)
    return model


def real_rows(inverter: Inverter, texts: int, length: int) -> tuple[list[list[int]], str]:
    """`texts` rows of exactly `length` tokens, and where they are from: C4 where it is at hand, else the package's own
    sentences, else (no tokenizer) random tokens."""
    if inverter.decoder.tokenizer is None:
        return random_rows(inverter, texts, length), "random tokens"
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


def random_rows(inverter: Inverter, texts: int, length: int) -> list[list[int]]:
    """Uniformly random tokens: passwords, keys, and everything a model would never write."""
    tokens = inverter.vocabulary.allowed.nonzero().flatten().tolist()
    draw = random.Random(0)
    return [draw.choices(tokens, k=length) for _ in range(texts)]


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    """Median wall time of a call, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def bare_forward(inverter: Inverter, rows: list[list[int]], rounds: int) -> float:
    """Median seconds of the model's own forward pass over the same rows, in batches of 256 (fewer of long rows)."""
    ids = torch.tensor(rows, device=inverter.decoder.device)
    parts = ids.split(max(1, min(256, (1 << 16) // ids.shape[1])))
    return median_seconds(lambda: [inverter.decoder.capture(part) for part in parts], rounds)


def peak_mib(call: Callable[[], object]) -> float:
    """Memory that a call takes at its peak beyond what was in use before, MiB (GPU memory where there is a GPU)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / (1 << 20)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # memory freed before must not hide what this call takes
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    page, done, seen = os.sysconf("SC_PAGE_SIZE"), threading.Event(), [_resident()]

    def watch():
        while not done.wait(0.002):
            seen.append(_resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return (max(seen) - seen[0]) * page / (1 << 20)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def versions(inverter: Inverter) -> dict[str, str]:
    device = inverter.decoder.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device}, {name}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "float32_products": torch.get_float32_matmul_precision(),
    }
