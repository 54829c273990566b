"""Every op as its formula, in plain PyTorch: the readable spec, the test oracle, and the backend for any device.

B lanes, C or N candidates, V vocabulary rows, D width, L prefix length, K queries in a row (a `linear` has width K).
"""

from __future__ import annotations

import torch
from torch import Tensor


def residuals(predictions: Tensor, targets: Tensor) -> Tensor:
    """‖predictions[b, c] − targets[b]‖₂ / ‖targets[b]‖₂: `[B, C, D], [B, D] → [B, C]` in fp32."""
    predictions, targets = predictions.float(), targets.float()
    distance = torch.linalg.vector_norm(predictions - targets[:, None], dim=-1)
    return distance / torch.linalg.vector_norm(targets, dim=-1).clamp_min(1e-30)[:, None]


def nearest_tokens(
    queries: Tensor, table: Tensor, count: int, metric: str = "l1", banned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `count` rows of `table [V, D]` nearest to each of `queries [B, D]`, nearest first, ties to the lower id.

    metric: l1 Σ|q−e| · l2 Σ(q−e)² · cosine 1−cos(q, e) · dot −⟨q, e⟩. banned `[B, V]` bool rows are never returned.
    A distance of NaN counts as infinite, and what is infinitely far is not returned either. Returns distances and ids
    `[B, count]`; a query with fewer than `count` rows left ends in +inf and id −1.
    """
    queries, table = queries.float(), table.float()
    if metric == "l1":
        distance = torch.cdist(queries, table, p=1)
    elif metric == "l2":
        distance = (queries.square().sum(-1)[:, None] - 2 * queries @ table.T + table.square().sum(-1)).clamp_min(0)
    elif metric == "cosine":
        normal = torch.nn.functional.normalize
        distance = 1 - normal(queries, dim=-1) @ normal(table, dim=-1).T
    elif metric == "dot":
        distance = -(queries @ table.T)
    else:
        raise ValueError(f"metric '{metric}' is unknown, expected l1, l2, cosine or dot")
    out = distance.isnan() if banned is None else distance.isnan() | banned
    distance = distance.masked_fill(out, float("inf"))
    if count == 1:  # argmin takes the first of equals, topk any of them
        ids = distance.argmin(-1, keepdim=True)
        values = distance.gather(-1, ids)
    else:
        values, ids = distance.sort(dim=-1, stable=True)
        values, ids = values[:, :count], ids[:, :count]
    return values, ids.masked_fill(values.isposinf(), -1)


def adam_step(
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
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """One Adam step of every active lane, in place; each lane is at a step count of its own (2607.00852, Algorithm 1).

    proxy, grad, exp_avg, exp_avg_sq `[B, D]` fp32; step `[B]` int64: steps already taken; active `[B]` bool: the other
    lanes are left as they are. The gradient of a lane is clipped to the norm `clip` (None: not at all); weight_decay is
    added to the gradient (L2, `torch.optim.Adam`); the learning rate falls from lr to 0 over total_steps on a cosine:
    lr · (1 + cos(π · step / total_steps)) / 2.
    """
    beta1, beta2 = betas
    if clip is not None:
        norm = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
        grad = grad * (clip / (norm + 1e-6)).clamp_max(1.0)
    if weight_decay:
        grad = grad + weight_decay * proxy
    on = active[:, None]
    exp_avg.copy_(torch.where(on, beta1 * exp_avg + (1 - beta1) * grad, exp_avg))
    exp_avg_sq.copy_(torch.where(on, beta2 * exp_avg_sq + (1 - beta2) * grad.square(), exp_avg_sq))
    done = step.double()[:, None]
    rate = lr * (1 + torch.cos(torch.pi * (done / total_steps).clamp_max(1.0))) / 2
    mean = exp_avg / (1 - beta1 ** (done + 1)).float()
    spread = (exp_avg_sq / (1 - beta2 ** (done + 1)).float()).sqrt() + eps
    proxy.copy_(torch.where(on, proxy - rate.float() * mean / spread, proxy))
    step += active


def linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None, packed: Tensor | None = None) -> Tensor:
    """x · matrix + bias: `[..., K], [K, N], [N] → [..., N]`. packed: for the backend that has a form of its own."""
    out = x @ matrix
    return out if bias is None else out + bias


def gelu(x: Tensor) -> Tensor:
    """x / (1 + exp(−2 √(2/π) (x + 0.044715 x³))), elementwise: GELU in its tanh form."""
    return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))


def best_two(x: Tensor, matrix: Tensor, bias: Tensor, packed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The v of the largest x·e_v + b_v, the lowest of equals, and its lead over the second largest: rows x `[n, K]`,
    matrix `[V, K]`, bias `[V]` → `[n]` each. packed: as in `linear`."""
    scores = x @ matrix.T + bias
    ids = scores.argmax(-1)
    others = scores.scatter(1, ids[:, None], float("-inf"))
    return ids, scores.amax(-1) - others.amax(-1)


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
) -> Tensor:
    """One block of queries a lane against [its prefix KV | its own KV]: softmax(q·kᵀ·scale) v.

    query `[B, Hq, K, d]`, key and value `[B, Hkv, K, d]` of the same tokens (Hq a multiple of Hkv: grouped heads);
    prefix_key, prefix_value `[S, Hkv, M, d]` static storage of which lane b owns row `slots[b]` (None: row b) up to
    `lengths[b]`. causal=True: the K queries follow one another, each sees the prefix and the queries up to itself
    (a draft). causal=False: each sees the prefix and itself alone, all stand at position lengths[b] (a fan-out), so the
    prefix is read once for all of them. window: only keys less than `window` positions back. Returns `[B, K, Hq, d]`.

    What is coarser than fp32 is computed in fp32: keys may have a large bias, and logits of hundreds whose last bit is
    one. Rounded, a fan-out would differ by a tenth from the pass that it stands for.
    """
    B, Hq, K, d = query.shape
    groups, dtype = Hq // key.shape[1], query.dtype
    query, key, value = _fine(query), _fine(key), _fine(value)
    q = query.reshape(B, key.shape[1], groups, K, d) * scale
    step = torch.arange(K, device=query.device)
    if causal:
        own = torch.einsum("bhgqd,bhkd->bhgqk", q, key)
        seen = step[:, None] >= step
        if window is not None:
            seen = seen & (step[:, None] - step < window)
    else:
        own = torch.einsum("bhgqd,bhqd->bhgq", q, key)[..., None]
        seen = None
    own = _cap(own, softcap)
    if seen is not None:
        own = own.masked_fill(~seen, float("-inf"))
    parts = [own]
    if prefix_key is not None and prefix_value is not None and lengths is not None:
        if slots is not None:
            prefix_key, prefix_value = prefix_key[slots], prefix_value[slots]
        prefix_key, prefix_value = _fine(prefix_key), _fine(prefix_value)
        back = _cap(torch.einsum("bhgqd,bhld->bhgql", q, prefix_key), softcap)
        at = torch.arange(prefix_key.shape[2], device=query.device)
        hidden = at >= lengths[:, None]  # [B, L]
        if window is not None:
            position = lengths[:, None] + (step if causal else torch.zeros_like(step))  # [B, K]
            hidden = hidden[:, None] | (position[:, :, None] - at >= window)  # [B, K, L]
            hidden = hidden[:, None, None]
        else:
            hidden = hidden[:, None, None, None]
        parts.insert(0, back.masked_fill(hidden, float("-inf")))
    weights = torch.softmax(torch.cat(parts, -1), -1)
    mine = weights[..., -K:] if causal else weights[..., -1:]
    mixed = torch.einsum("bhgqk,bhkd->bhgqd", mine, value) if causal else mine * value[:, :, None]
    if prefix_key is not None and prefix_value is not None and lengths is not None:
        mixed = mixed + torch.einsum("bhgql,bhld->bhgqd", weights[..., : -mine.shape[-1]], prefix_value)
    return mixed.reshape(B, Hq, K, d).transpose(1, 2).to(dtype)


def _fine(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _cap(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
