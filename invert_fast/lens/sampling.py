"""Training text for lenses without any data: what the model itself writes, mixed with random tokens.

Random tokens matter: passwords, code and foreign words look like nothing the model would write.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary

_RANDOM_SHARES = (0.0, 0.3, 1.0)


class _Progress(BaseStreamer):
    """One tick of the bar a sampled position."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def put(self, value: Tensor) -> None:
        self.bar.update()

    def end(self) -> None:
        """Nothing to finish: the bar is closed by its owner."""


@torch.no_grad()
def self_samples(
    decoder: Decoder,
    vocabulary: Vocabulary,
    count: int,
    length: int,
    seed: int,
    shares: tuple[float, ...] = _RANDOM_SHARES,
) -> Tensor:
    """`[count, length]` ids: texts sampled from the model after a random first token, with shares of their tokens
    replaced at random: none in a third of the texts, 30 % in a third, all in a third, unless `shares` says otherwise.
    Deterministic from the seed; leaves the global generator alone."""
    device = vocabulary.allowed.device
    ids = vocabulary.allowed.nonzero().flatten()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random = ids[torch.randint(len(ids), (count, length), device=device)]
        share = torch.tensor(shares, device=device).repeat(count // len(shares) + 1)[:count]
        written = share < 1.0
        text = random.clone()
        if length > 1 and bool(written.any()):
            config = GenerationConfig(
                do_sample=True,
                top_k=0,
                max_new_tokens=length - 1,
                min_new_tokens=length - 1,
                pad_token_id=0,
                eos_token_id=None,
                bos_token_id=None,
            )
            start = random[written, :1]
            with tqdm(total=length, desc="sample texts", unit="position", delay=2, leave=False) as bar:
                text[written] = decoder.model.generate(  # type: ignore[operator]
                    start, attention_mask=torch.ones_like(start), generation_config=config, streamer=_Progress(bar)
                )
        swap = torch.rand(count, length, device=device) < share[:, None]
        text = torch.where(swap, random, text)
    return torch.where(vocabulary.usable[text], text, random)  # padding rows are never in a real text


def noisy(states: Tensor, noise: float, seed: int) -> Tensor:
    """States `[..., D]` with Gaussian noise of `noise` times the RMS of each row. Deterministic from the seed."""
    if not noise:
        return states
    drawn = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed)).to(states.device)
    return states + noise * states.square().mean(-1, keepdim=True).sqrt() * drawn
