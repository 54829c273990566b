"""How much memory there is, and how many lanes and tokens of work fit in a share of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..model.decoder import Decoder

_DEFAULT_SHARE, _DEFAULT_MOST = 0.5, 16.0
_LANES_MOST, _TOKENS_MOST = 256, 1 << 16
_CPU_CALL, _CPU_TOKENS_LEAST = 1 << 23, 512  # bytes that the widest layer may write in one call on a CPU
_GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """slots: lanes at once; tokens_per_call: tokens one forward pass may compute."""

    slots: int
    tokens_per_call: int


def available_gib(device: torch.device) -> float:
    """Free memory of the device, GiB; 4 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / _GIB
    try:
        line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
        return int(line.split()[1]) / (1 << 20)
    except (OSError, StopIteration, ValueError, IndexError):
        return 4.0


def plan(decoder: Decoder, max_len: int, max_memory: float | None, batch_size: int | None) -> Plan:
    """Lanes and tokens a call within `max_memory` GiB (default: half of what is free, at most 16).

    Half of it is for what lanes hold (targets, proxies, prefix KV, what was tried), half for what one forward pass
    makes. On a CPU a call is also kept so small that what one layer writes is still in the cache when the next reads
    it: a quarter faster than everything at once.
    """
    budget = (
        max_memory if max_memory is not None else min(_DEFAULT_MOST, _DEFAULT_SHARE * available_gib(decoder.device))
    )
    config = decoder.model.config.get_text_config()
    size = torch.finfo(decoder.dtype).bits // 8
    heads = getattr(config, "num_attention_heads", None) or 1  # of a model without attention: about as much a token
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    lane = max_len * (8 * decoder.width + 2 * decoder.blocks * kv_heads * head * size) + decoder.vocab_size
    slots = batch_size or int(max(1, min(_LANES_MOST, budget / 2 * _GIB // lane)))
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    kept_kv = 2 * decoder.blocks * kv_heads * head * size  # a call keeps its KV until it is committed
    token = size * (8 * config.hidden_size + 3 * inner) + 12 * heads * max_len + kept_kv
    most = _TOKENS_MOST if decoder.device.type != "cpu" else max(_CPU_TOKENS_LEAST, _CPU_CALL // (size * inner))
    return Plan(slots, int(max(64, min(most, budget / 2 * _GIB // token))))
