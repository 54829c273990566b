"""How an inverter is built, and how it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..types import InputError

OPTIMIZERS = ("adam", "muon")
LARGEST = 16384  # of any size in a stored config: a hostile file must not make us allocate all memory


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
