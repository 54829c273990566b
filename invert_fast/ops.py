"""The one place where backends meet: each op has one name, one shape check, and its backends in one literal table.

To add a backend, write it with the reference's signature and put it in `BACKENDS`; `choose` says which one runs.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invert_fast.kernels import attention, reference

from . import draft_attention, fan_out
from .native import _C

try:
    from . import _cuda  # type: ignore[attr-defined]
except ImportError:  # no nvcc at install time: Triton runs on GPUs anyway
    _cuda: Any = None

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_METRICS = ("l1", "l2", "cosine", "dot")  # in the order of csrc/nearest.h
_NATIVE_DTYPES = (torch.float32, torch.bfloat16)
_TRITON_DTYPES = (*_NATIVE_DTYPES, torch.float16)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself where each of its rows is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _residuals(call: Callable, predictions: Tensor, targets: Tensor, last: int) -> Tensor:
    """One pass over the predictions, no `[B, C, D]` temporary. last: the argument that differs, threads or a stream."""
    B, C, D = predictions.shape
    predictions, targets = _rows(predictions), _rows(targets)
    out = torch.empty(B, C, dtype=torch.float32, device=predictions.device)
    call(
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
        last,
    )
    return out


def _native_residuals(predictions: Tensor, targets: Tensor) -> Tensor:
    """csrc/residuals.cpp"""
    return _residuals(_C.residuals, predictions, targets, torch.get_num_threads())


def _cuda_residuals(predictions: Tensor, targets: Tensor) -> Tensor:
    """csrc/cuda/residuals.cu"""
    stream = _stream(predictions, targets)
    return _residuals(_cuda.residuals, predictions, targets, stream)


def _native_closest(predictions: Tensor, targets: Tensor, tolerance: Tensor) -> reference.Closest:
    """csrc/residuals.cpp: the same pass, and what it says of each lane."""
    B, C, D = predictions.shape
    predictions, targets, tolerance = _rows(predictions), _rows(targets), tolerance.float().contiguous()
    found = reference.Closest(
        torch.empty(B, C),
        torch.empty(B, C),
        torch.empty(B, dtype=torch.long),
        torch.empty(B),
        torch.empty(B, dtype=torch.long),
    )
    _C.closest(
        *(t.data_ptr() for t in (predictions, targets, tolerance, *found)),
        (B, C, D),
        (predictions.stride(0), predictions.stride(1), targets.stride(0)),
        predictions.dtype == torch.bfloat16,
        targets.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return found


def _native_nearest_tokens(
    queries: Tensor, table: Tensor, count: int, metric: str = "l1", banned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """csrc/nearest.cpp: each tile of the table passes once through the cache, for all queries."""
    queries, table = _rows(queries.float()), _rows(table if table.dtype in _NATIVE_DTYPES else table.float())
    banned = None if banned is None else _rows(banned)
    (B, D), V = queries.shape, len(table)
    distances, ids = torch.empty(B, count), torch.empty(B, count, dtype=torch.long)
    _C.nearest_tokens(
        queries.data_ptr(),
        table.data_ptr(),
        0 if banned is None else banned.data_ptr(),
        distances.data_ptr(),
        ids.data_ptr(),
        B,
        V,
        D,
        count,
        queries.stride(0),
        table.stride(0),
        0 if banned is None else banned.stride(0),
        _METRICS.index(metric),
        table.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return distances, ids


def _cuda_nearest_tokens(
    queries: Tensor, table: Tensor, count: int, metric: str = "l1", banned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """csrc/cuda/nearest.cu. For more than one nearest row, ranks of all of them are written; no two are equal, so topk
    has no ties to break."""
    queries, table = _rows(queries.float()), _rows(table if table.dtype in _NATIVE_DTYPES else table.float())
    banned = None if banned is None else _rows(banned)
    stream = _stream(*(t for t in (queries, table, banned) if t is not None))
    (B, D), V = queries.shape, len(table)
    distances = torch.empty(B, count, dtype=torch.float32, device=queries.device)
    ids = torch.empty(B, count, dtype=torch.long, device=queries.device)
    parts = _cuda.rank_parts(queries.get_device(), B, V)
    ranks = torch.empty(B, parts if count == 1 else V, dtype=torch.long, device=queries.device)
    _cuda.rank_rows(
        queries.data_ptr(),
        table.data_ptr(),
        0 if banned is None else banned.data_ptr(),
        ranks.data_ptr(),
        B,
        V,
        D,
        parts,
        queries.stride(0),
        table.stride(0),
        0 if banned is None else banned.stride(0),
        _METRICS.index(metric),
        table.dtype == torch.bfloat16,
        count > 1,
        stream,
    )
    best = ranks if count == 1 else ranks.topk(count, largest=False).values.contiguous().view(-1, 1)
    _cuda.unpack_ranks(best.data_ptr(), distances.data_ptr(), ids.data_ptr(), B * count, best.shape[1], stream)
    return distances, ids


def _stream(*tensors: Tensor) -> int:
    """The stream on which PyTorch queues work of these tensors, all of one GPU."""
    if _cuda is None:
        raise ValueError("backend 'cuda' needs invert_fast._cuda: install with INVERT_FAST_CUDA=on where nvcc is")
    devices = {t.device for t in tensors}
    if len(devices) > 1 or tensors[0].device.type != "cuda":
        raise ValueError(f"backend 'cuda' got tensors on {sorted(map(str, devices))}: expected all on one GPU")
    return torch.cuda.current_stream(tensors[0].device).cuda_stream


def _native_adam_step(
    proxy: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    active: Tensor,
    *,
    lr: float,
    total_steps: int,
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """csrc/adam.cpp: one pass over the lanes, no temporaries."""
    B, D = proxy.shape
    _C.adam_step(
        *(t.data_ptr() for t in (proxy, grad, exp_avg, exp_avg_sq, step, active)),
        B,
        D,
        *(t.stride(0) for t in (proxy, grad, exp_avg, exp_avg_sq)),
        lr,
        total_steps,
        math.inf if clip is None else clip,
        weight_decay,
        *betas,
        eps,
        decoupled,
        torch.get_num_threads(),
    )


def _triton(module: str, op: str) -> Callable:
    """An op of `kernels/<module>.py`, imported when it is first called: not every machine has Triton."""

    def call(*arguments: Any, **settings: Any) -> Any:
        return getattr(importlib.import_module(f"invert_fast.kernels.{module}"), op)(*arguments, **settings)

    return call


def _native_prefix_attention(query: Tensor, key: Tensor, *rest: Any, causal: bool, **options: Any) -> Tensor:
    """csrc/fan_out.cpp for a few fp32 tokens a lane, each on its own; csrc/draft.cpp for many in a row. PyTorch for
    everything else."""
    softcap = options.get("softcap")
    if fan_out.fits(query, causal, softcap):
        options.pop("softcap", None)
        return fan_out.attention(query, key, *rest, **options)
    if causal and draft_attention.fits(query, softcap):
        options.pop("softcap", None)
        return draft_attention.attention(query, key, *rest, **options)
    return attention.prefix_attention(query, key, *rest, causal=causal, **options)


BACKENDS: dict[str, dict[str, Callable]] = {
    "residuals": {
        "triton": _triton("residuals_triton", "residuals"),
        "cuda": _cuda_residuals,
        "cpp": _native_residuals,
        "reference": reference.residuals,
    },
    "closest": {
        "triton": _triton("residuals_triton", "closest"),
        "cpp": _native_closest,
        "reference": reference.closest,
    },
    "nearest_tokens": {
        "triton": _triton("nearest_triton", "nearest_tokens"),
        "cuda": _cuda_nearest_tokens,
        "cpp": _native_nearest_tokens,
        "reference": reference.nearest_tokens,
    },
    "adam_step": {
        "triton": _triton("adam_triton", "adam_step"),
        "cpp": _native_adam_step,
        "reference": reference.adam_step,
    },
    "prefix_attention": {
        "triton": _triton("attention_triton", "prefix_attention"),
        "cpp": _native_prefix_attention,
        "fused": attention.prefix_attention,
        "reference": reference.prefix_attention,
    },
}


def choose(op: str, device: torch.device) -> str:
    """The backend that runs `op` on `device` when none is asked for; "cuda" only cross-checks "triton"."""
    if device.type == "cpu" and _C is not None:
        return "cpp"
    if device.type == "cuda" and _HAS_TRITON:
        return "triton"
    return "fused" if op == "prefix_attention" else "reference"


def _backend(op: str, name: str, device: torch.device) -> Callable:
    name = choose(op, device) if name == "auto" else name
    if name not in BACKENDS[op]:
        raise ValueError(f"backend '{name}' does not have {op}, expected auto or one of {sorted(BACKENDS[op])}")
    return BACKENDS[op][name]


def residuals(predictions: Tensor, targets: Tensor, *, backend: str = "auto") -> Tensor:
    """Relative L2 distance of every candidate's state to its lane's target, `[B, C, D], [B, D] → [B, C]` fp32."""
    _check_candidates("residuals", predictions, targets)
    if backend == "auto" and (predictions.requires_grad or not _stored_plainly(predictions, targets)):
        backend = "reference"
    return _backend("residuals", backend, predictions.device)(predictions, targets)


def closest(predictions: Tensor, targets: Tensor, tolerance: Tensor, *, backend: str = "auto") -> reference.Closest:
    """`residuals`, squared distances, and of each lane the nearest candidate, the runner-up's residual and the first
    candidate within `tolerance [B]`, in one pass: see `kernels.reference.closest`. Takes no gradient."""
    _check_candidates("closest", predictions, targets)
    if tolerance.shape != predictions.shape[:1]:
        raise ValueError(f"closest with tolerance {list(tolerance.shape)}: expected [{len(predictions)}], one a lane")
    if backend == "auto" and not _stored_plainly(predictions, targets):
        backend = "reference"
    return _backend("closest", backend, predictions.device)(predictions.detach(), targets.detach(), tolerance)


def _check_candidates(op: str, predictions: Tensor, targets: Tensor) -> None:
    if predictions.dim() != 3 or targets.shape != (predictions.shape[0], predictions.shape[2]):
        raise ValueError(
            f"{op} of predictions {list(predictions.shape)} and targets {list(targets.shape)}: "
            "expected [B, C, D] and [B, D]"
        )


def _stored_plainly(*tensors: Tensor) -> bool:
    return all(t.dtype in _NATIVE_DTYPES for t in tensors)


def nearest_tokens(
    queries: Tensor,
    table: Tensor,
    count: int,
    metric: str = "l1",
    banned: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Nearest rows of the embedding table, see `kernels.reference.nearest_tokens`: distances and ids `[B, count]`.

    No gradient flows through the distances.
    """
    if queries.dim() != 2 or table.dim() != 2 or queries.shape[1] != table.shape[1]:
        raise ValueError(
            f"nearest_tokens of queries {list(queries.shape)} in table {list(table.shape)}: expected [B, D] and [V, D]"
        )
    if not 1 <= count <= len(table):
        raise ValueError(f"nearest_tokens asked for {count} of {len(table)} rows")
    if metric not in _METRICS:
        raise ValueError(f"metric '{metric}' is unknown, expected {', '.join(_METRICS[:-1])} or {_METRICS[-1]}")
    if banned is not None and (banned.dtype != torch.bool or banned.shape != (len(queries), len(table))):
        raise ValueError(
            f"nearest_tokens with banned {list(banned.shape)} {banned.dtype}: "
            f"expected [{len(queries)}, {len(table)}] torch.bool"
        )
    call = _backend("nearest_tokens", backend, queries.device)
    return call(queries.detach(), table.detach(), count, metric, banned)


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
    counted = step.shape == proxy.shape[:1] and step.dtype == torch.int64
    chosen = active.shape == proxy.shape[:1] and active.dtype == torch.bool
    if proxy.dim() != 2 or not (same and counted and chosen):
        raise ValueError(
            f"adam_step of proxies {list(proxy.shape)} {proxy.dtype}, gradients {list(grad.shape)} {grad.dtype}, "
            f"moments {list(exp_avg.shape)} and {list(exp_avg_sq.shape)}, steps {list(step.shape)} {step.dtype}, "
            f"active {list(active.shape)} {active.dtype}: expected four fp32 [B, D], int64 [B] and bool [B]"
        )
    in_place = {"proxy": proxy, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "step": step}
    if strided := [name for name, table in in_place.items() if table.stride(-1) != 1 and table.shape[-1] > 1]:
        raise ValueError(f"adam_step in place on {' and '.join(strided)} with gaps in the rows: expected stride 1")
    call = _backend("adam_step", backend, proxy.device)
    call(proxy, _rows(grad), exp_avg, exp_avg_sq, step, active.contiguous(), **settings)


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
    plain = causal and query.shape[2] > 1 and prefix_key is None  # PyTorch's own kernels are made for that
    if backend == "auto" and query.device.type == "cuda" and (plain or query.dtype not in _TRITON_DTYPES):
        backend = "fused"
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
