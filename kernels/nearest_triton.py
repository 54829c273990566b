"""`nearest_tokens` in Triton: distances of a tile of the table are ranked where they are computed.

A distance and its id are packed into one int64 that sorts by distance, then by id. For count = 1 the kernel keeps the
least of each tile, so nothing of size B×V is written; for more it writes all of them, and `torch.topk` looks only into
the tiles that can hold one of the nearest: those whose own least is among the `count` least.
"""

# pyright takes the launch of a kernel for a call of the function that describes it
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

METRICS = {"l1": 0, "l2": 1, "cosine": 2, "dot": 3}
INFINITY = tl.constexpr(0x7F800000)  # the bits of +inf


def tiles(batch: int) -> dict[str, int]:
    """Queries, rows and columns in flight, and the warps that hold them: 64 sums a thread at most."""
    if batch == 1:
        return {"BQ": 1, "BV": 64, "BD": 128, "num_warps": 4}
    return (
        {"BQ": 4, "BV": 64, "BD": 32, "num_warps": 4} if batch <= 4 else {"BQ": 16, "BV": 32, "BD": 32, "num_warps": 8}
    )


@triton.jit
def rank_rows(
    queries,
    table,
    banned,
    ranks,
    least,
    B,
    V,
    query_stride,
    table_stride,
    banned_stride,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    HAS_BANNED: tl.constexpr,
    KEEP_ALL: tl.constexpr,
    BQ: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """least[b, tile] = min over the tile's rows v of rank(distance(b, v), v); with KEEP_ALL also ranks[b, v]."""
    # Programs of one tile are neighbours: the later ones find its rows in the cache.
    n, tile = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.program_id(1)
    v = tile * BV + tl.arange(0, BV)
    n_there, v_there = n < B, v < V
    sums = tl.zeros((BQ, BV, BD), tl.float32)
    query_squares = tl.zeros((BQ, BD), tl.float32)
    row_squares = tl.zeros((BV, BD), tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        d_there = d < D
        q = tl.load(
            queries + n.to(tl.int64)[:, None] * query_stride + d[None, :],
            mask=n_there[:, None] & d_there[None, :],
            other=0.0,
        ).to(tl.float32)
        e = tl.load(
            table + v.to(tl.int64)[:, None] * table_stride + d[None, :],
            mask=v_there[:, None] & d_there[None, :],
            other=0.0,
        ).to(tl.float32)
        if METRIC == 0:
            sums += tl.abs(q[:, None, :] - e[None, :, :])
        elif METRIC == 1:
            difference = q[:, None, :] - e[None, :, :]
            sums += difference * difference
        else:
            sums += q[:, None, :] * e[None, :, :]
        if METRIC == 2:
            query_squares += q * q
            row_squares += e * e
    distance = tl.sum(sums, 2)
    if METRIC == 2:
        query_length = tl.maximum(tl.sqrt(tl.sum(query_squares, 1)), 1e-12)
        row_length = tl.maximum(tl.sqrt(tl.sum(row_squares, 1)), 1e-12)
        distance = 1.0 - distance / (query_length[:, None] * row_length[None, :])
    elif METRIC == 3:
        distance = -distance
    left = v_there[None, :] & (distance == distance)  # not NaN
    if HAS_BANNED:
        at = banned + n.to(tl.int64)[:, None] * banned_stride + v[None, :]
        left = left & (tl.load(at, mask=n_there[:, None] & v_there[None, :], other=0) == 0)
    # The bits of a float sort like an integer once those of a negative one, but for its sign, are turned round.
    bits = tl.where(left, distance + 0.0, float("inf")).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    rank = (bits.to(tl.int64) << 32) | v.to(tl.int64)[None, :]
    count = tl.num_programs(1)
    tl.store(least + n.to(tl.int64) * count + tile, tl.min(rank, 1), mask=n_there)
    if KEEP_ALL:
        tl.store(ranks + n.to(tl.int64)[:, None] * (count * BV) + v[None, :], rank, mask=n_there[:, None])


@triton.jit
def unpack_ranks(ranks, distances, ids, size, BLOCK: tl.constexpr):
    """The distance and the id in each rank; id −1 where the distance is +inf."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rank = tl.load(ranks + i, mask=i < size, other=0)
    bits = (rank >> 32).to(tl.int32)
    tl.store(ids + i, tl.where(bits == INFINITY, -1, rank & 0xFFFFFFFF), mask=i < size)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    tl.store(distances + i, bits.to(tl.float32, bitcast=True), mask=i < size)


def nearest_tokens(
    queries: Tensor, table: Tensor, count: int, metric: str = "l1", banned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Contract of `reference.nearest_tokens`."""
    queries = queries if queries.stride(-1) == 1 else queries.contiguous()
    table = table if table.stride(-1) == 1 else table.contiguous()
    banned = None if banned is None else banned.view(torch.uint8).contiguous()
    (B, D), V = queries.shape, len(table)
    distances = torch.empty(B, count, dtype=torch.float32, device=queries.device)
    ids = torch.empty(B, count, dtype=torch.long, device=queries.device)
    if B == 0:
        return distances, ids
    settings = tiles(B)
    rows = settings["BV"]
    parts = triton.cdiv(V, rows)
    least = torch.empty(B, parts, dtype=torch.long, device=queries.device)
    ranks = least if count == 1 else torch.empty(B, parts, rows, dtype=torch.long, device=queries.device)
    rank_rows[(triton.cdiv(B, settings["BQ"]), parts)](
        queries,
        table,
        queries if banned is None else banned,
        ranks,
        least,
        B,
        V,
        queries.stride(0),
        table.stride(0),
        0 if banned is None else banned.stride(0),
        D=D,
        METRIC=METRICS[metric],
        HAS_BANNED=banned is not None,
        KEEP_ALL=count > 1,
        **settings,
    )
    best = least.amin(1, keepdim=True) if count == 1 else _smallest(ranks, least, count)
    unpack_ranks[(triton.cdiv(B * count, 256),)](best, distances, ids, B * count, BLOCK=256)
    return distances, ids


def _smallest(ranks: Tensor, least: Tensor, count: int) -> Tensor:
    """The `count` least of `ranks [B, tiles, rows]`, in order: no two are equal, so topk has no ties to break."""
    if 2 * count < least.shape[1]:
        chosen = least.topk(count, largest=False, sorted=False).indices
        ranks = ranks.gather(1, chosen[..., None].expand(-1, -1, ranks.shape[2]))
    return ranks.flatten(1).topk(count, largest=False).values.contiguous()
