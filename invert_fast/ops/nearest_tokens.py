"""`nearest_tokens`: the rows of the embedding table nearest to some queries. csrc/nearest.cpp, csrc/cuda/nearest.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, outside
from .native import _C, NATIVE_DTYPES, _cuda, address, rows
from .table import backend as backend_of

METRICS = ("l1", "l2", "cosine", "dot")  # in the order of csrc/nearest.h


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
    if metric not in METRICS:
        raise ValueError(f"metric '{metric}' is unknown, expected {', '.join(METRICS[:-1])} or {METRICS[-1]}")
    if banned is not None and (banned.dtype != torch.bool or banned.shape != (len(queries), len(table))):
        raise ValueError(
            f"nearest_tokens with banned {list(banned.shape)} {banned.dtype}: "
            f"expected [{len(queries)}, {len(table)}] torch.bool"
        )
    ours = backend == "own" or (backend == "auto" and not outside.serving("nearest_tokens", queries.device.type))
    if ours and count == 1 and queries.device.type == "cuda" and native._cuda is not None:
        backend = "cuda"  # twice as fast as Triton's there; of more than one it would write the ranks of all
    call = backend_of("nearest_tokens", backend, queries.device)
    return call(queries.detach(), table.detach(), count, metric, banned)


def cpp(
    queries: Tensor, table: Tensor, count: int, metric: str = "l1", banned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """csrc/nearest.cpp: each tile of the table passes once through the cache, for all queries."""
    queries, table, banned = _laid_out(queries, table, banned)
    (B, D), V = queries.shape, len(table)
    distances, ids = queries.new_empty(B, count), queries.new_empty(B, count, dtype=torch.long)
    _C.nearest_tokens(
        address(queries),
        address(table, *NATIVE_DTYPES),
        0 if banned is None else address(banned, torch.bool),
        address(distances),
        address(ids, torch.long),
        B,
        V,
        D,
        count,
        queries.stride(0),
        table.stride(0),
        0 if banned is None else banned.stride(0),
        METRICS.index(metric),
        table.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return distances, ids


def cuda(
    queries: Tensor, table: Tensor, count: int, metric: str = "l1", banned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """csrc/cuda/nearest.cu. For more than one nearest row, ranks of all of them are written; no two are equal, so topk
    has no ties to break."""
    queries, table, banned = _laid_out(queries, table, banned)
    stream = native.stream(*(t for t in (queries, table, banned) if t is not None))
    (B, D), V = queries.shape, len(table)
    distances = torch.empty(B, count, dtype=torch.float32, device=queries.device)
    ids = torch.empty(B, count, dtype=torch.long, device=queries.device)
    parts = _cuda.rank_parts(queries.get_device(), B, V)
    ranks = torch.empty(B, parts if count == 1 else V, dtype=torch.long, device=queries.device)
    _cuda.rank_rows(
        address(queries),
        address(table, *NATIVE_DTYPES),
        0 if banned is None else address(banned, torch.bool),
        ranks.data_ptr(),
        B,
        V,
        D,
        parts,
        queries.stride(0),
        table.stride(0),
        0 if banned is None else banned.stride(0),
        METRICS.index(metric),
        table.dtype == torch.bfloat16,
        count > 1,
        stream,
    )
    best = ranks if count == 1 else ranks.topk(count, largest=False).values.contiguous().view(-1, 1)
    _cuda.unpack_ranks(best.data_ptr(), distances.data_ptr(), ids.data_ptr(), B * count, best.shape[1], stream)
    return distances, ids


def _laid_out(queries: Tensor, table: Tensor, banned: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As the kernels read them: rows that are contiguous, queries in fp32, a table in one of two precisions."""
    table = table if table.dtype in NATIVE_DTYPES else table.float()
    return rows(queries.float()), rows(table), None if banned is None else rows(banned)
