"""The learned lens: a small causal transformer over H that corrects the linear lens where context blurs it.

    z_t = (h_t − μ) / σ,   x = transformer(W₁ z_t + W₂ z_{t−1}),   proxy_t = s·A[h_t; h_{t−1}; 1] + W₃ x_t
    score_v = proxy_t·e_v + s·b_v + d_v   (+ w_t · log p(v | h_{t−1}), w_t = max(0, W₄ x_t + b₄))

The last term, the model's own next-token prior, is part of a lens of a large vocabulary at the last layer: how much of
it a token wants shows in the states around it, so the transformer says that as well.

A and b start as those of the linear lens (`linear.py`) and W₃ at zero, so before any training it *is* the linear lens.
Position 0 has no context to correct for, and stays with the linear lens. The output is tied to the embedding matrix.
No position is encoded: the states know theirs, and texts may be longer than any seen in training. A row attends to the
`WINDOW` last rows: what blurs a state is near it, and the cost of a draft is linear in the length of a text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import prefix_attention
from ..ops.gelu import Gelu
from ..ops.linear import pack_linears
from .linear import LinearLens, best_tokens, split_rows, token_lists, two_row_map
from .precision import fast_dtype
from .prior import DraftPrior
from .repair import Repair
from .settings import HEAD

WINDOW = 64  # rows that a row attends to, itself included
_WORTH = 0.001  # more of the tokens right, at least, than the linear lens has, to be worth its passes
_TOKENS_AT_ONCE = 2048  # of a draft: what a pass over so many tokens writes stays in the cache


class LearnedLens(nn.Module):
    """Used like `LinearLens`, which it holds for position 0 and for change scores. Trained by `train.fit_learned`.

    width: of the transformer, a multiple of 64 (or less than 64); layers: its depth; weighs: whether it says how much
    of the model's own prior joins its scores. accuracy, linear_accuracy: its own and the linear lens's share of
    held-out tokens whose top score is right.
    """

    kind = "learned"
    mean: Tensor
    spread: Tensor
    fixed: Tensor

    def __init__(self, linear: LinearLens, width: int, layers: int, weighs: bool = False):
        super().__init__()
        self.linear, self.vocabulary = linear, linear.vocabulary
        self.width, self.layers, self.weighs = width, layers, weighs
        self.accuracy, self.linear_accuracy, self.repair = linear.accuracy, linear.accuracy, Repair()
        self.prior: DraftPrior | None = None
        both, constant = split_rows(linear.parts["rest"].project)
        inputs, outputs = both.shape[0], both.shape[1] // 2
        self.register_buffer("mean", both.new_zeros(inputs))
        self.register_buffer("spread", both.new_ones(inputs))
        # no infinities: they would make the gradient of the scale NaN
        self.register_buffer("fixed", linear.parts["rest"].bias.clamp_min(-1e30), persistent=False)
        self.project, self.constant = nn.Parameter(both.clone()), nn.Parameter(constant.clone())
        self.log_scale = nn.Parameter(both.new_zeros(()))
        self.shift = nn.Parameter(both.new_zeros(len(linear.vocabulary.embedding)))
        self.enter = nn.Linear(inputs, 2 * width)
        self.body = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, outputs)
        _zero(self.leave)
        self.gate = nn.Linear(width, 1) if weighs else None
        if self.gate is not None:
            _zero(self.gate)
            nn.init.ones_(self.gate.bias)
        self.to(both.device)

    @property
    def pays(self) -> bool:
        """Whether it drafts so much better than the linear lens that it is used unasked."""
        return self.accuracy >= self.linear_accuracy + _WORTH

    def freeze(self) -> LearnedLens:
        """For drafting from now on, no longer for training."""
        self.eval().requires_grad_(False)
        pack_linears(self)
        return self

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Proxies of whole texts, `[b, T, D] → [b, T, D_e]` fp32, and the weights of the prior `[b, T]`, 0 at position
        0, or None.

        The transformer runs in bf16 where that is faster. The linear part never does: its scores are in the thousands,
        of which bf16 would round away what tells tokens apart.
        """
        half = fast_dtype(hidden.device) is torch.bfloat16
        # no cache: inside an autocast of the caller's it would outlive a step, and with it the weights before the step
        with torch.autocast(hidden.device.type, dtype=torch.bfloat16, enabled=half, cache_enabled=False):
            here, before = self.enter((hidden - self.mean) / self.spread).chunk(2, -1)
            x = here + F.pad(before, (0, 0, 1, 0))[:, :-1]
            for block in self.body:
                x = block(x)
            seen = self.norm(x[:, 1:])
            correction = self.leave(seen)
            weights = None if self.gate is None else F.pad(self.gate(seen)[..., 0].float().clamp_min(0.0), (1, 0))
        linear = two_row_map(hidden, self.linear.parts["first"].project, self.project, self.constant)
        return torch.cat([linear[:, :1], self.log_scale.exp() * linear[:, 1:] + correction.float()], 1), weights

    def bias(self) -> Tensor:
        """`[V]`: what a token scores beyond position 0 whatever the state; −1e30 for tokens that are no candidates."""
        return self.log_scale.exp() * self.fixed + self.shift

    @torch.no_grad()
    def proxies(self, hidden: Tensor) -> Tensor:
        """As `LinearLens.proxies`; the texts go through in groups of a few thousand tokens."""
        return torch.cat([self(part)[0] for part in self._groups(hidden)])

    @torch.no_grad()
    def weighed_proxies(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The same of a lens that weighs the prior, and the weights of that, `[b, T]`."""
        proxies, weights = zip(*(self(part) for part in self._groups(hidden)), strict=True)
        return torch.cat(proxies), torch.cat(weights)

    def _groups(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return hidden.split(max(1, hidden.shape[1] and _TOKENS_AT_ONCE // hidden.shape[1]))

    @torch.no_grad()
    def best(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """As `LinearLens.best`."""
        first = self.linear.parts["first"].bias
        return best_tokens(proxies, self.linear.best_two, first, self.bias(), self.log_scale.exp())

    @torch.no_grad()
    def lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """As `LinearLens.lists`."""
        first = self.linear.parts["first"].bias
        return token_lists(proxies, self.linear.best_two, first, self.bias(), self.log_scale.exp())

    @torch.no_grad()
    def row_lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """As `LinearLens.row_lists`."""
        return self.linear.best_two.shortlist(proxies, self.bias(), self.log_scale.exp())

    def draft(self, hidden: Tensor) -> Tensor:
        """As `LinearLens.draft`: `[b, T, D] → [b, T]`."""
        return self.best(self.proxies(hidden))[0]

    @torch.no_grad()
    def scores(self, proxies: Tensor, first: Tensor) -> Tensor:
        """As `LinearLens.scores`: `[b, D_e] → [b, V]`."""
        bias = torch.where(first[:, None], self.linear.parts["first"].bias, self.bias())
        return self.vocabulary.embedding.scores(proxies, bias)

    def change_scores(self, state: Tensor, wrong_state: Tensor, wrong: Tensor, ids: Tensor | None = None) -> Tensor:
        """As `LinearLens.change_scores`."""
        return self.linear.change_scores(state, wrong_state, wrong, ids)

    def change_proxies(self, state: Tensor, wrong_state: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """As `LinearLens.change_proxies`."""
        return self.linear.change_proxies(state, wrong_state, wrong)

    @property
    def row_bias(self) -> Tensor:
        """As `LinearLens.row_bias`."""
        return self.bias()


class _Block(nn.Module):
    """A pre-norm transformer block that starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.gelu, self.down = nn.Linear(width, 4 * width), Gelu(), nn.Linear(4 * width, width)
        _zero(self.mixed)
        _zero(self.down)

    def forward(self, x: Tensor) -> Tensor:
        B, T, width = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(B, T, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = prefix_attention(q, k, v, scale=q.shape[-1] ** -0.5, causal=True, window=WINDOW).reshape(B, T, width)
        x = x + self.mixed(seen)
        return x + self.down(self.gelu(self.up(self.norm_mlp(x))))


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
