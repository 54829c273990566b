"""`best_two` in Triton, in two stages: a search in fp16 that writes no scores, and a few candidates scored in full.

On a GPU the product of rows and vocabulary in fp32 costs half of a forward pass, in fp16 a fraction of that. What fp16
gets wrong is small beside the lead of one token over the next, but for a common part of all tokens, which is taken off
before. So the best two of each group of tokens are kept, and the best `CANDIDATES` of all groups are scored in fp32.
"""

# pyright takes the launch of a kernel for a call of the function that describes it
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CANDIDATES = 8
_GROUPS = 256  # about so many of a vocabulary: what is written and sorted a row
_BN, _BK = 128, 64
_ROWS = 1 << 14  # of the matrix, put into fp16 at once
_GATHERED = 1 << 26  # numbers of it, gathered at once


def tiles(rows: int) -> dict[str, int]:
    """Rows, tokens and columns in flight, and the warps that hold them."""
    if rows <= 16:
        return {"BM": 16, "BN": _BN, "BK": 128, "num_warps": 4, "num_stages": 3}
    if rows <= 64:
        return {"BM": 64, "BN": 64, "BK": _BK, "num_warps": 4, "num_stages": 4}
    return {"BM": 128, "BN": _BN, "BK": _BK, "num_warps": 8, "num_stages": 3}


def columns(width: int) -> int:
    """Columns in flight where candidates are scored in full."""
    return min(512, triton.next_power_of_2(width))


@triton.jit
def rank_of(score, v):
    """int64 `[…]` that sorts by score, then towards the lower id; NaN below everything."""
    bits = tl.where(score == score, score + 0.0, float("-inf")).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) | (0xFFFFFFFF - v.to(tl.int64))


@triton.jit
def rank_groups(
    x,
    factor,
    table,
    bias,
    ranks,
    n,
    V,
    x_stride,
    table_stride,
    K: tl.constexpr,
    TILES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """ranks[r, g] = ranks of the two largest factor_r x_r·e_v + b_v of the tokens of group g: TILES tiles of BN."""
    # Programs of one group are neighbours: the later ones find its rows in the cache.
    r, group = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1)
    r_there = r < n
    scale = tl.load(factor + r, mask=r_there, other=0.0)
    best, second = tl.full((BM,), float("-inf"), tl.float32), tl.full((BM,), float("-inf"), tl.float32)
    best_id, second_id = tl.full((BM,), 0x7FFFFFFF, tl.int32), tl.full((BM,), 0x7FFFFFFF, tl.int32)
    for tile in range(TILES):
        v = (group * TILES + tile) * BN + tl.arange(0, BN)
        v_there = v < V
        scores = tl.zeros((BM, BN), tl.float32)
        for start in range(0, K, BK):
            d = start + tl.arange(0, BK)
            d_there = d < K
            rows = tl.load(
                x + r.to(tl.int64)[:, None] * x_stride + d[None, :], mask=r_there[:, None] & d_there[None, :], other=0.0
            )
            tokens = tl.load(
                table + v.to(tl.int64)[None, :] * table_stride + d[:, None],
                mask=d_there[:, None] & v_there[None, :],
                other=0.0,
            )
            scores = tl.dot(rows, tokens, scores)
        scores = scores * scale[:, None] + tl.load(bias + v, mask=v_there, other=float("-inf"))[None, :]
        scores = tl.where(scores == scores, scores, float("-inf"))
        top = tl.max(scores, 1)
        top_id = tl.min(tl.where(scores == top[:, None], v[None, :], 0x7FFFFFFF), 1)
        scores = tl.where(v[None, :] == top_id[:, None], float("-inf"), scores)
        next_top = tl.max(scores, 1)
        next_id = tl.min(
            tl.where((scores == next_top[:, None]) & (v[None, :] != top_id[:, None]), v[None, :], 0x7FFFFFFF), 1
        )
        wins = top > best  # earlier tiles have the lower ids: equals stay behind
        loser, loser_id = tl.where(wins, best, top), tl.where(wins, best_id, top_id)
        other, other_id = tl.where(wins, next_top, second), tl.where(wins, next_id, second_id)
        best, best_id = tl.where(wins, top, best), tl.where(wins, top_id, best_id)
        ahead = (loser > other) | ((loser == other) & (loser_id < other_id))
        second, second_id = tl.where(ahead, loser, other), tl.where(ahead, loser_id, other_id)
    at = ranks + (r.to(tl.int64) * tl.num_programs(1) + group) * 2
    tl.store(at, rank_of(best, best_id), mask=r_there)
    tl.store(at + 1, rank_of(second, second_id), mask=r_there)


@triton.jit
def best_of_row(
    x,
    matrix,
    bias,
    ranks,
    ids,
    leads,
    V,
    x_stride,
    matrix_stride,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
):
    """The best of C candidates of one row, scored in full, and its lead over the second."""
    r = tl.program_id(0).to(tl.int64)
    v = 0xFFFFFFFF - (tl.load(ranks + r * C + tl.arange(0, C)) & 0xFFFFFFFF)
    there = v < V
    sums = tl.zeros((C, BK), tl.float32)
    for start in range(0, K, BK):
        d = start + tl.arange(0, BK)
        row = tl.load(x + r * x_stride + d, mask=d < K, other=0.0).to(tl.float32)
        tokens = tl.load(
            matrix + v[:, None] * matrix_stride + d[None, :], mask=there[:, None] & (d < K)[None, :], other=0.0
        )
        sums += row[None, :] * tokens.to(tl.float32)
    scores = tl.sum(sums, 1) + tl.load(bias + v, mask=there, other=float("-inf"))
    scores = tl.where(scores == scores, scores, float("-inf"))
    top = tl.max(scores, 0)
    found = tl.min(tl.where(scores == top, v, 0x7FFFFFFF), 0)
    tl.store(ids + r, tl.minimum(found, V - 1))
    tl.store(leads + r, top - tl.max(tl.where(v == found, float("-inf"), scores), 0))


def coarse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """What the first stage searches: `[V, K]` in fp16, less the mean row, which moves all scores of a row alike, over
    the largest number in it; and that number."""
    mean = torch.stack([part.float().nan_to_num().sum(0) for part in matrix.split(_ROWS)]).sum(0) / len(matrix)
    most = (
        torch.stack([(part - mean).nan_to_num().abs().amax() for part in matrix.split(_ROWS)]).amax().clamp_min(1e-30)
    )
    return torch.cat([((part - mean) / most).half() for part in matrix.split(_ROWS)]), most


def ranks_of_groups(x: Tensor, packed: tuple[Tensor, Tensor], bias: Tensor, count: int) -> Tensor:
    """The `count` best ranks of each row in the first stage, of no token where there are fewer: `[n, count]`."""
    (table, most), (n, K) = packed, x.shape
    V, settings = len(table), tiles(n)
    per_group = max(1, triton.cdiv(V, settings["BN"] * _GROUPS))
    groups = triton.cdiv(V, settings["BN"] * per_group)
    largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    low, factor = (x / largest).half(), (largest * most).float()
    ranks = torch.empty(n, 2 * groups, dtype=torch.long, device=x.device)
    rank_groups[(triton.cdiv(n, settings["BM"]), groups)](
        *(low, factor, table, bias, ranks, n, V, low.stride(0), table.stride(0)), K=K, TILES=per_group, **settings
    )
    missing = count - 2 * groups
    if missing > 0:  # a small vocabulary: ranks of no token
        ranks = torch.nn.functional.pad(ranks, (0, missing), value=torch.iinfo(torch.long).min)
    # no two are equal, so topk has no ties to break
    return ranks.topk(count, sorted=False).values.contiguous()


def best_two(
    x: Tensor, matrix: Tensor, bias: Tensor, packed: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Contract of `reference.best_two`. packed: what `coarse` made of the matrix."""
    packed, bias = coarse(matrix) if packed is None else packed, bias.float().contiguous()
    x, matrix = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, matrix))
    (n, K), V = x.shape, len(matrix)
    ids, leads = torch.empty(n, dtype=torch.long, device=x.device), torch.empty(n, device=x.device)
    if n == 0:
        return ids, leads
    ranks = ranks_of_groups(x, packed, bias, CANDIDATES)
    best_of_row[(n,)](
        *(x, matrix, bias, ranks, ids, leads, V, x.stride(0), matrix.stride(0)), K=K, C=CANDIDATES, BK=columns(K)
    )
    return ids, leads


def shortlist(
    x: Tensor, matrix: Tensor, bias: Tensor, packed: tuple[Tensor, Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """`ops.best_two.BestTwo.shortlist`: the best two of every group of tokens are among what it finds."""
    if len(x) == 0:
        return x.new_empty(0, count, dtype=torch.long), x.new_empty(0, count)
    bias = bias.float().contiguous()
    ids = 0xFFFFFFFF - (ranks_of_groups(x, packed, bias, count) & 0xFFFFFFFF)
    there = ids < len(matrix)
    ids = ids.masked_fill(~there, 0)
    rows = max(1, _GATHERED // (count * matrix.shape[1]))
    parts = zip(x.float().split(rows), ids.split(rows), strict=True)
    scores = torch.cat([torch.bmm(matrix[v].float(), part[..., None])[..., 0] for part, v in parts]) + bias[ids]
    scores, order = scores.masked_fill(~there | scores.isnan(), -torch.inf).sort(-1, descending=True)
    return ids.gather(1, order).masked_fill(scores == -torch.inf, -1), scores
