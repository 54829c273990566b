"""`nearest_tokens` in Triton: distances of a tile of the table are ranked where they are computed.

A distance and its id are packed into one int64 that sorts by distance, then by id. The kernel keeps the least of each
tile, so nothing of size B×V is written. For count > 1 the nearest rows are in the `count` tiles whose own least is
least: those alone are ranked once more, row by row.
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
CHOSEN_COLUMNS = 128


def tiles(batch: int) -> dict[str, int]:
    """Queries, rows and columns in flight, and the warps that hold them: 64 sums a thread at most."""
    if batch == 1:
        return {"BQ": 1, "BV": 64, "BD": 128, "num_warps": 4}
    return (
        {"BQ": 4, "BV": 64, "BD": 32, "num_warps": 4} if batch <= 4 else {"BQ": 16, "BV": 32, "BD": 32, "num_warps": 8}
    )


@triton.jit
def rank_tile(
    queries,
    table,
    banned,
    n,
    v,
    B,
    V,
    query_stride,
    table_stride,
    banned_stride,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    HAS_BANNED: tl.constexpr,
    BQ: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """rank(distance(n, v), v) of queries `n [BQ]` and rows `v [BV]`: int64 `[BQ, BV]`."""
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
    return (bits.to(tl.int64) << 32) | v.to(tl.int64)[None, :]


@triton.jit
def rank_rows(
    queries,
    table,
    banned,
    least,
    B,
    V,
    query_stride,
    table_stride,
    banned_stride,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    HAS_BANNED: tl.constexpr,
    BQ: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """least[b, tile] = min over the tile's rows v of rank(distance(b, v), v)."""
    # Programs of one tile are neighbours: the later ones find its rows in the cache.
    n, tile = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.program_id(1)
    v = tile * BV + tl.arange(0, BV)
    rank = rank_tile(
        queries, table, banned, n, v, B, V, query_stride, table_stride, banned_stride, D, METRIC, HAS_BANNED, BQ, BV, BD
    )
    tl.store(least + n.to(tl.int64) * tl.num_programs(1) + tile, tl.min(rank, 1), mask=n < B)


@triton.jit
def rank_chosen(
    queries,
    table,
    banned,
    chosen,
    ranks,
    B,
    V,
    query_stride,
    table_stride,
    banned_stride,
    chosen_stride,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    HAS_BANNED: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """ranks[b, j] = rank(distance(b, v), v) of every row v of tile chosen[b, j]."""
    b, j = tl.program_id(0), tl.program_id(1)
    n, v = b + tl.arange(0, 1), tl.load(chosen + b * chosen_stride + j).to(tl.int32) * BV + tl.arange(0, BV)
    rank = rank_tile(
        queries, table, banned, n, v, B, V, query_stride, table_stride, banned_stride, D, METRIC, HAS_BANNED, 1, BV, BD
    )
    at = ranks + (b.to(tl.int64) * tl.num_programs(1) + j) * BV + tl.arange(0, BV)[None, :]
    tl.store(at, rank)


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
    given = (queries, table, queries if banned is None else banned)
    strides = (queries.stride(0), table.stride(0), 0 if banned is None else banned.stride(0))
    kind = {"D": D, "METRIC": METRICS[metric], "HAS_BANNED": banned is not None}
    chosen = torch.arange(parts, device=queries.device).expand(B, parts)  # most tiles have one of the nearest
    if 2 * count < parts or count == 1:
        least = torch.empty(B, parts, dtype=torch.long, device=queries.device)
        rank_rows[(triton.cdiv(B, settings["BQ"]), parts)](*given, least, B, V, *strides, **kind, **settings)
        best = least.amin(1, keepdim=True)
        if count > 1:
            chosen = least.topk(count, largest=False, sorted=False).indices
    if count > 1:
        ranks = torch.empty(B, chosen.shape[1], rows, dtype=torch.long, device=queries.device)
        rank_chosen[(B, chosen.shape[1])](
            *given, chosen, ranks, B, V, *strides, chosen.stride(0), **kind, BV=rows, BD=CHOSEN_COLUMNS, num_warps=4
        )
        # no two are equal, so topk has no ties to break
        best = ranks.flatten(1).topk(count, largest=False).values.contiguous()
    unpack_ranks[(triton.cdiv(B * count, 256),)](best, distances, ids, B * count, BLOCK=256)
    return distances, ids
