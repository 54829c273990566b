"""Tiny random models of common families, and what the tests need around them.

They are sharper than a fresh initialisation, so that different texts have clearly different states, and their biases
and gains are random, so that one left out is noticed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from invert_fast import Inverter, Recovery

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gpt_neox", "opt", "gemma", "phi3")
MORE = ("gemma2",)  # alternates windows, caps its logits
# For what could hang on the processor. Families share their arithmetic: it is tried on two of them.
ON_EVERY_PROCESSOR = [
    name if name in ("gpt2", "llama") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
]
VOCAB, WIDTH, BLOCKS, HEADS, POSITIONS, WINDOW = 300, 64, 3, 4, 128, 5
LAYERS = [*range(-BLOCKS - 1, BLOCKS + 1), *(f"block:{k}" for k in range(BLOCKS)), "final_norm", "embeddings"]
_SHARPER, _SHIFT = 4.0, 0.1


def config(family: str, vocab: int = VOCAB, width: int = WIDTH, blocks: int = BLOCKS) -> transformers.PretrainedConfig:
    """A fresh one each time: `from_config` keeps a reference to it, and models would share it."""
    kind = {
        "gpt2": transformers.GPT2Config,
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "mistral": transformers.MistralConfig,
        "gpt_neox": transformers.GPTNeoXConfig,
        "opt": transformers.OPTConfig,
        "gemma": transformers.GemmaConfig,
        "gemma2": transformers.Gemma2Config,
        "phi3": transformers.Phi3Config,
    }[family]
    own = {
        "gpt2": {},
        "mistral": {"num_key_value_heads": 2, "sliding_window": WINDOW},
        "gpt_neox": {},
        "opt": {"ffn_dim": 2 * width, "word_embed_proj_dim": width},
        "gemma": {"num_key_value_heads": 1, "head_dim": width // HEADS},
        "gemma2": {"num_key_value_heads": 2, "head_dim": width // HEADS, "sliding_window": WINDOW},
        "qwen3": {"num_key_value_heads": 2, "head_dim": width // HEADS},
    }.get(family, {"num_key_value_heads": 2})
    if family not in ("gpt2", "opt"):
        own["intermediate_size"] = 2 * width
    return kind(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **own,
    )


def build(family: str, seed: int = 0, **sizes: int) -> PreTrainedModel:
    """A model of one's own, to change at will."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family, **sizes), dtype=torch.float32).eval()
    for parameter in model.requires_grad_(False).parameters():
        if parameter.dim() > 1:
            parameter.mul_(_SHARPER)
        else:
            parameter.add_(_SHIFT * torch.randn(parameter.shape, generator=generator))
    table = embedding_table(model)
    table[0] = table[1].flip(0)  # transformers makes the row of the padding token zero
    return model


@functools.cache
def make(family: str, seed: int = 0) -> PreTrainedModel:
    """A model that tests share and leave as it is."""
    return build(family, seed)


@functools.cache
def inverter(family: str, layer: int | str = -1, seed: int = 0) -> Inverter:
    """An inverter that tests share."""
    return Inverter(make(family, seed), layer=layer)


def texts(*lengths: int, vocab: int = VOCAB, seed: int = 0) -> list[list[int]]:
    """Random token ids, one text a length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (length,), generator=generator).tolist() for length in lengths]


def exact(found: Sequence[Recovery], truth: Sequence[Sequence[int]]) -> bool:
    """Every text recovered, every token of it certified."""
    return [r.token_ids.tolist() for r in found] == [list(ids) for ids in truth] and all(r.certified for r in found)


def embedding_table(model: PreTrainedModel) -> Tensor:
    """The stored embedding matrix `[V, D]`, to be edited in place."""
    return model.get_input_embeddings().weight  # type: ignore[return-value]


class Tokenizer:
    """As much of a tokenizer as the package uses, over `size` words `<0> <1> …`."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str, add_special_tokens: bool = False, verbose: bool = False) -> dict[str, list[int]]:
        ids = [self._id(word) for word in text.split()]
        return {"input_ids": [1] * add_special_tokens + ids}

    def _id(self, word: str) -> int:
        number = word.strip("<>")
        return int(number) if number.isascii() and number.isdigit() else sum(word.encode()) % self.size

    def decode(self, ids: Sequence[int], **_) -> str:
        return " ".join(f"<{i}>" for i in ids)
