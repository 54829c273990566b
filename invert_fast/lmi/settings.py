"""What an inverter is shown, how it is built, and how it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..types import InputError

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("log-probs", "logits", "text")
OPTIMIZERS = ("adam", "muon")
LARGEST = 16384  # of any size in a stored config: a hostile file must not make us allocate all memory
SWEEPS: dict[str, tuple[float, ...]] = {  # settings of a `View` that an inverter can be measured under
    "top_k": (1, 10, 100, 1000),
    "temperature": (0.5, 0.8, 1.2, 2.0),
    "top_p": (0.5, 0.9, 0.99),
    "noise": (0.001, 0.01, 0.1, 1.0),
}


@dataclass(frozen=True)
class View:
    """What is seen of the distribution after a prompt.

    kind: `log-probs`, raw `logits`, or `text`: only the tokens that the target samples (a baseline); steps: how many
    greedily generated positions are seen, 1 = the prompt's last alone (of `text`: how many tokens are sampled);
    entries: log-probs of this many tokens, chosen by `seed`, None = all V of them; top_k: only the k largest
    probabilities are shown, the rest of the mass lies evenly on the others (0 = all are); temperature, top_p: the
    provider's sampling settings; noise: standard deviation of Gaussian noise on the log-probs, in nats.
    """

    kind: str = "log-probs"
    steps: int = 1
    entries: int | None = None
    top_k: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"input '{self.kind}', expected one of {', '.join(KINDS)}")
        if self.steps < 1 or self.top_k < 0 or (self.entries is not None and self.entries < 1):
            raise InputError(
                f"{self.steps} steps, {self.entries} entries, top {self.top_k}, expected steps ≥ 1, entries ≥ 1 (or "
                "none given, for all) and top-k ≥ 0 (0: all)"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(
                f"temperature {self.temperature}, expected more than 0 (greedy text shows no distribution)"
            )
        if not 0 < self.top_p <= 1 or not (math.isfinite(self.noise) and self.noise >= 0):
            raise InputError(f"top-p {self.top_p} and noise {self.noise}, expected 0 < top-p ≤ 1 and noise ≥ 0 nats")
        blurred = self.top_k or self.top_p < 1 or self.noise or self.entries is not None
        if self.kind == "text" and blurred:
            raise InputError("text shows no probabilities: entries, top-k, top-p and noise do not go with it")
        if self.kind == "logits" and (self.top_k or self.top_p < 1 or self.temperature != 1):
            raise InputError("top-k, top-p and temperature act on probabilities, expected the input `log-probs`")

    def width(self, vocab_size: int) -> int:
        """Entries of a vector a step; of `text` one: the token's id."""
        if self.kind == "text":
            return 1
        return vocab_size if self.entries is None else self.entries

    def check(self, vocab_size: int) -> None:
        """InputError unless the target's vocabulary has what is asked for."""
        for what, value in (("entries", self.entries or 0), ("top-k", self.top_k)):
            if value > vocab_size:
                raise InputError(f"{what} {value} of a vocabulary of {vocab_size}, expected at most {vocab_size}")

    def tokens(self, vocab_size: int) -> Tensor | None:
        """Ids `[entries]` whose log-probs are shown, ascending; None = all. The same for every model of this size."""
        if self.entries is None:
            return None
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(vocab_size, generator=generator)[: self.entries].sort().values


@dataclass(frozen=True)
class Architecture:
    """body: `tiny` (a T5 built from the sizes below, in the target's own vocabulary), or the name or local folder of a
    pretrained encoder-decoder (`t5-base` in the paper); whiten: 0, or the rank to which each vector is mapped first
    (for `entries`: the target's width); estimates: closed-form estimates of so many first and last tokens, as further
    pseudo-embeddings (0: none); table: where a tiny body's embedding table starts, `random` or `target`, from the
    target's own, which takes its weights; bottleneck: of the shared MLP, 0 = the body's width; dropout: in the MLP and,
    in a tiny body, everywhere; max_tokens: longest prompt that can be written."""

    body: str = "t5-base"
    width: int = 192
    layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    feed_forward: int = 512
    bottleneck: int = 0
    dropout: float = 0.1
    whiten: int = 0
    estimates: int = 0
    table: str = "random"
    ema: float = 0.01
    max_tokens: int = 64

    def __post_init__(self):
        sizes = (self.width, self.layers, self.decoder_layers, self.heads, self.feed_forward, self.max_tokens)
        if not all(1 <= size <= LARGEST for size in sizes) or self.width % self.heads:
            raise InputError(f"sizes {sizes}, expected each from 1 to {LARGEST} and a width that the heads divide")
        if self.table not in ("random", "target") or (self.table == "target" and self.body != "tiny"):
            raise InputError(f"table '{self.table}' of body '{self.body}', expected random, or target with body tiny")
        if not 0 <= self.estimates <= 64:
            raise InputError(f"{self.estimates} estimates, expected 0 to 64 tokens from either end")
        if not (0 <= self.bottleneck <= LARGEST and 0 <= self.whiten <= LARGEST):
            raise InputError(f"bottleneck {self.bottleneck}, whiten {self.whiten}, expected 0 to {LARGEST}")
        if not (0 <= self.dropout < 1 and 0 < self.ema <= 1):
            raise InputError(f"dropout {self.dropout}, ema {self.ema}, expected 0 ≤ dropout < 1 and 0 < ema ≤ 1")


@dataclass(frozen=True)
class Training:
    """How an inverter is trained. The defaults of rate, optimizer and warm-up are the paper's.

    steps, batch: prompts a step; optimizer: `adam`, or `muon` for matrices and Adam for the rest; rate: the highest
    learning rate, that of the embedding table is `embedding_rate` times as high; warm: steps over which it rises;
    fall: share of the steps, at the end, over which it falls to zero (0: constant); clip: largest gradient norm;
    look: held-out prompts are looked at, and a checkpoint written, every so many steps; patience: looks without gain
    in held-out loss before it stops, 0 = never; memory_gib: vectors of the prompts are kept when they fit into this,
    else asked for anew in each step; bf16: run the network in bf16; seed.
    """

    steps: int = 100_000
    batch: int = 256
    optimizer: str = "adam"
    rate: float = 2e-4
    embedding_rate: float = 1.0
    warm: int = 25_000
    fall: float = 0.0
    clip: float = 1.0
    look: int = 500
    patience: int = 0
    memory_gib: float = 2.0
    bf16: bool = False
    seed: int = 0

    def __post_init__(self):
        if min(self.steps, self.batch, self.look) < 1 or min(self.warm, self.patience) < 0:
            raise InputError(
                f"{self.steps} steps of {self.batch}, look every {self.look}, warm {self.warm}, patience "
                f"{self.patience}, expected steps, batch and look ≥ 1, warm and patience ≥ 0"
            )
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer '{self.optimizer}', expected one of {', '.join(OPTIMIZERS)}")
        positive = (self.rate, self.embedding_rate, self.clip)
        if not all(math.isfinite(x) and x > 0 for x in positive) or not 0 <= self.fall <= 1 or self.memory_gib < 0:
            raise InputError(
                f"rate {self.rate}, embedding rate {self.embedding_rate}, clip {self.clip}, fall {self.fall}, memory "
                f"{self.memory_gib}, expected positive rates and clip, 0 ≤ fall ≤ 1 and memory ≥ 0 GiB"
            )
