"""The one place where backends meet: each op has one name, one shape check, and its backends in one literal table.

To add a backend, write it with the reference's signature and put it in `BACKENDS`; `choose` says which one runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invert_fast.kernels import attention, reference

from . import fan_out

try:
    from . import _C  # type: ignore[attr-defined]
except ImportError:  # no compiler at install time: everything runs, more slowly
    _C: Any = None

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def _native_residuals(predictions: Tensor, targets: Tensor) -> Tensor:
    """csrc/residuals.cpp: one pass over the predictions, no `[B, C, D]` temporary."""
    B, C, D = predictions.shape
    predictions = predictions if predictions.stride(-1) == 1 else predictions.contiguous()
    targets = targets if targets.stride(-1) == 1 else targets.contiguous()
    out = torch.empty(B, C, dtype=torch.float32)
    _C.residuals(
        predictions.data_ptr(),
        targets.data_ptr(),
        out.data_ptr(),
        B,
        C,
        D,
        predictions.stride(0),
        predictions.stride(1),
        targets.stride(0),
        predictions.dtype == torch.bfloat16,
        targets.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def _native_prefix_attention(query: Tensor, key: Tensor, *rest: Any, causal: bool, **options: Any) -> Tensor:
    """csrc/fan_out.cpp where it fits: a few fp32 tokens a lane, each on its own. PyTorch for everything else."""
    if fan_out.fits(query, causal, options.get("softcap")):
        options.pop("softcap", None)
        return fan_out.attention(query, key, *rest, **options)
    return attention.prefix_attention(query, key, *rest, causal=causal, **options)


BACKENDS: dict[str, dict[str, Callable]] = {
    "residuals": {"cpp": _native_residuals, "reference": reference.residuals},
    "nearest_tokens": {"reference": reference.nearest_tokens},
    "adam_step": {"reference": reference.adam_step},
    "prefix_attention": {
        "cpp": _native_prefix_attention,
        "fused": attention.prefix_attention,
        "reference": reference.prefix_attention,
    },
}


def choose(op: str, device: torch.device) -> str:
    """The backend that runs `op` on `device` when none is asked for."""
    if device.type == "cpu" and _C is not None and "cpp" in BACKENDS[op]:
        return "cpp"
    return "fused" if op == "prefix_attention" else "reference"


def _backend(op: str, name: str, device: torch.device) -> Callable:
    name = choose(op, device) if name == "auto" else name
    if name not in BACKENDS[op]:
        raise ValueError(f"backend '{name}' does not have {op}, expected auto or one of {sorted(BACKENDS[op])}")
    return BACKENDS[op][name]


def residuals(predictions: Tensor, targets: Tensor, *, backend: str = "auto") -> Tensor:
    """Relative L2 distance of every candidate's state to its lane's target, `[B, C, D], [B, D] → [B, C]` fp32."""
    if predictions.dim() != 3 or targets.shape != (predictions.shape[0], predictions.shape[2]):
        raise ValueError(
            f"residuals of predictions {list(predictions.shape)} and targets {list(targets.shape)}: "
            "expected [B, C, D] and [B, D]"
        )
    if backend == "auto" and (
        predictions.requires_grad or predictions.dtype not in _NATIVE_DTYPES or targets.dtype not in _NATIVE_DTYPES
    ):
        backend = "reference"
    return _backend("residuals", backend, predictions.device)(predictions, targets)


def nearest_tokens(
    queries: Tensor,
    table: Tensor,
    count: int,
    metric: str = "l1",
    banned: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Nearest rows of the embedding table, see `kernels.reference.nearest_tokens`: distances and ids `[B, count]`."""
    if queries.dim() != 2 or table.dim() != 2 or queries.shape[1] != table.shape[1]:
        raise ValueError(
            f"nearest_tokens of queries {list(queries.shape)} in table {list(table.shape)}: expected [B, D] and [V, D]"
        )
    if not 1 <= count <= len(table):
        raise ValueError(f"nearest_tokens asked for {count} of {len(table)} rows")
    return _backend("nearest_tokens", backend, queries.device)(queries, table, count, metric, banned)


def adam_step(
    proxy: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    active: Tensor,
    *,
    backend: str = "auto",
    **settings: Any,
) -> None:
    """One clipped, scheduled Adam step of all active lanes in place, see `kernels.reference.adam_step`."""
    same = all(t.shape == proxy.shape and t.dtype == torch.float32 for t in (proxy, grad, exp_avg, exp_avg_sq))
    if proxy.dim() != 2 or not same or step.shape != proxy.shape[:1] or active.shape != proxy.shape[:1]:
        raise ValueError(
            f"adam_step of proxies {list(proxy.shape)} {proxy.dtype}, gradients {list(grad.shape)} {grad.dtype}, "
            f"moments {list(exp_avg.shape)} and {list(exp_avg_sq.shape)}, steps {list(step.shape)}, active "
            f"{list(active.shape)}: expected four fp32 [B, D], [B] and [B]"
        )
    _backend("adam_step", backend, proxy.device)(proxy, grad, exp_avg, exp_avg_sq, step, active, **settings)


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None,
    prefix_value: Tensor | None,
    lengths: Tensor | None,
    slots: Tensor | None = None,
    *,
    scale: float,
    causal: bool,
    window: int | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """A block of queries a lane against [shared prefix KV | own KV], see `kernels.reference.prefix_attention`."""
    if query.shape[1] % key.shape[1] or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"prefix_attention of queries {list(query.shape)} and keys {list(key.shape)}: expected "
            "[B, Hq, K, d] and [B, Hkv, K, d] with Hq a multiple of Hkv"
        )
    return _backend("prefix_attention", backend, query.device)(
        query,
        key,
        value,
        prefix_key,
        prefix_value,
        lengths,
        slots,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
    )
