"""How many lanes and tokens of work fit in the memory that there is."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from ..model.decoder import Decoder
from ..model.footprint import available_gib, held_bytes
from ..ops.best_two import LISTED, MANY_TOKENS

log = logging.getLogger("invert_fast")

_DEFAULT_SHARE, _DEFAULT_MOST = 0.5, 16.0
_LANES_MOST, _TOKENS_MOST = 256, 1 << 16
_CPU_CALL, _CPU_TOKENS_LEAST = 1 << 23, 512  # bytes that the widest layer may write in one call on a CPU
_GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """slots: lanes at once; tokens_per_call: tokens one forward pass may compute."""

    slots: int
    tokens_per_call: int


def shared_out(decoder: Decoder, max_memory: float | None, processes: int) -> float | None:
    """The GiB to stay within, its own copy of the model included, of each of several processes that share a device:
    see `plan`. max_memory: of all of them together; None for the default, that of one process shared out."""
    if processes == 1:
        return max_memory
    if max_memory is not None:
        return max_memory / processes
    free = min(_DEFAULT_MOST, _DEFAULT_SHARE * available_gib(decoder.device))
    return held_bytes(decoder) / _GIB + free / processes


def plan(decoder: Decoder, max_len: int, max_memory: float | None, batch_size: int | None) -> Plan:
    """Lanes and tokens a call within `max_memory` GiB, the model and all that is kept of it included (default: half of
    what is free beside the model, at most 16). A model that takes more leaves one lane and the smallest calls.

    Half of what is left is for what lanes hold (targets, what they lead to, proxies, lists, prefix KV, what was tried),
    half for what one forward pass makes. On a CPU a call is also kept so small that what one layer writes is still in
    the cache when the next reads it: a quarter faster than everything at once.
    """
    budget = min(_DEFAULT_MOST, _DEFAULT_SHARE * available_gib(decoder.device))
    if max_memory is not None:
        held = held_bytes(decoder) / _GIB
        if held > max_memory:
            log.warning(
                "the model takes %.2f GiB, more than the %.2f GiB to stay within (--max-memory): going on with as "
                "little beside it as can be",
                *(held, max_memory),
            )
        budget = max(0.0, max_memory - held)
    config = decoder.model.config.get_text_config()
    size = torch.finfo(decoder.dtype).bits // 8
    heads = getattr(config, "num_attention_heads", None) or 1  # of a model without attention: about as much a token
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    many = decoder.vocab_size >= MANY_TOKENS
    lists, rows = 8 * LISTED if many else 0, 3 if many and not decoder.layer.near_head else 2
    lane = (
        max_len * (4 * rows * decoder.width + lists + 2 * decoder.blocks * kv_heads * head * size) + decoder.vocab_size
    )
    slots = batch_size or int(max(1, min(_LANES_MOST, budget / 2 * _GIB // lane)))
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    inner = inner if isinstance(inner, int) else max(inner)  # some families say it block by block
    kept_kv = 2 * decoder.blocks * kv_heads * head * size  # a call keeps its KV until it is committed
    token = size * (8 * config.hidden_size + 3 * inner) + 12 * heads * max_len + kept_kv
    most = _TOKENS_MOST if decoder.device.type != "cpu" else max(_CPU_TOKENS_LEAST, _CPU_CALL // (size * inner))
    return Plan(slots, int(max(64, min(most, budget / 2 * _GIB // token))))


def ran_out(error: BaseException) -> bool:
    """Whether this is how a device or a machine says that it has no more memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
