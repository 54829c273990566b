"""The inverter itself: vectors → pseudo-embeddings → a Hugging Face encoder-decoder → the prompt (2311.13647).

The only file here that knows encoder-decoders. The body is a pretrained one from a local folder or the Hub (the
paper's `t5-base`), which speaks its own tokenizer, or one built from a config, which speaks the target's token ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..types import InputError
from .estimates import Estimates
from .target import Target
from .unroll import RunningMean, TextRows, Unroll
from .view import View, check_vectors
from .whiten import Whiten

BODIES = ("t5", "mt5", "bart")
_WHITEN_PROMPTS = 4096
_IGNORED = -100  # torch's cross-entropy skips it
_LARGEST = 16384  # of any size in a stored config: a hostile file must not make us allocate all memory


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
        if not all(1 <= size <= _LARGEST for size in sizes) or self.width % self.heads:
            raise InputError(f"sizes {sizes}, expected each from 1 to {_LARGEST} and a width that the heads divide")
        if self.table not in ("random", "target") or (self.table == "target" and self.body != "tiny"):
            raise InputError(f"table '{self.table}' of body '{self.body}', expected random, or target with body tiny")
        if not 0 <= self.estimates <= 64:
            raise InputError(f"{self.estimates} estimates, expected 0 to 64 tokens from either end")
        if not (0 <= self.bottleneck <= _LARGEST and 0 <= self.whiten <= _LARGEST):
            raise InputError(f"bottleneck {self.bottleneck}, whiten {self.whiten}, expected 0 to {_LARGEST}")
        if not (0 <= self.dropout < 1 and 0 < self.ema <= 1):
            raise InputError(f"dropout {self.dropout}, ema {self.ema}, expected 0 ≤ dropout < 1 and 0 < ema ≤ 1")


@dataclass(frozen=True)
class Shape:
    """What of a target an inverter depends on, and how its body is built: all that a checkpoint needs to be read."""

    vocab_size: int
    view: View = field(default_factory=View)
    architecture: Architecture = field(default_factory=Architecture)
    config: dict[str, Any] = field(default_factory=dict)  # of the body, as Hugging Face writes it


class PromptInverter(nn.Module):
    """Vectors `[B, steps, width]` of a target to prompts.

    tokenizer: of the body; None where the body speaks the target's ids. `whiten` must be fitted before use.
    """

    def __init__(self, shape: Shape, body, tokenizer=None):
        super().__init__()
        view, how = shape.view, shape.architecture
        self.shape, self.tokenizer = shape, tokenizer
        if view.kind == "text" and (how.whiten or how.estimates):
            raise InputError("text has nothing to whiten or estimate from: --whiten 0 --estimates 0")
        width = view.width(shape.vocab_size)
        self.whiten = Whiten(width, min(how.whiten, width)) if how.whiten else None
        seen = min(how.whiten, width) if how.whiten else width
        d = body.get_input_embeddings().weight.shape[1]
        if view.kind == "text":
            self.front: nn.Module = TextRows(shape.vocab_size, d)
        else:
            self.mean = RunningMean(view.steps, seen, how.ema)
            self.unroll = Unroll(view.steps, seen, d, how.bottleneck or d, how.dropout)
        self.estimates = Estimates(view.steps, seen, d, how.estimates) if how.estimates else None
        self.body = body

    @torch.no_grad()
    def fit(self, vectors: Tensor, labels: Tensor) -> None:
        """The closed-form parts, from vectors `[n, steps, width]` of training prompts and their labels."""
        if self.whiten is not None:
            self.whiten.fit(vectors[:_WHITEN_PROMPTS].flatten(0, 1))
            vectors = self.whiten(vectors)
        if self.estimates is not None:
            end = self.body.config.eos_token_id
            prompts = [[i for i in row if i not in (_IGNORED, end)] for row in labels.tolist()]
            self.estimates.fit(vectors, prompts, self.body.get_input_embeddings().weight.detach())

    def embeddings(self, vectors: Tensor) -> Tensor:
        """The row of pseudo-embeddings that the encoder reads, `[B, steps·chunks + 2·estimates, d]`."""
        if self.shape.view.kind == "text":
            return self.front(vectors)
        if self.whiten is not None:
            vectors = self.whiten(vectors)
        rows = self.unroll(self.mean(vectors))
        return rows if self.estimates is None else torch.cat([rows, self.estimates(vectors)], 1)

    def loss(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy a token of the prompts, in nats; labels `[B, L]` from `labels`."""
        embeddings = self.embeddings(vectors)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        return self.body(inputs_embeds=embeddings, attention_mask=mask, labels=labels).loss

    def labels(self, prompts: Sequence[Sequence[int]], texts: Sequence[str] | None = None) -> Tensor:
        """What the decoder is to write, `[B, L]`, ended and padded with −100. texts: the prompts as strings, needed
        where the body has a tokenizer of its own."""
        end = self.body.config.eos_token_id
        if self.tokenizer is None:
            rows = [[*ids, end] for ids in prompts]
        else:
            assert texts is not None, "a body with its own tokenizer learns texts"
            rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
            rows = [[*ids[: self.shape.architecture.max_tokens - 1], end] for ids in rows]
        out = torch.full((len(rows), max(map(len, rows), default=1)), _IGNORED)
        for row, ids in zip(out, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return out

    @torch.no_grad()
    def write(self, vectors: Tensor, beams: int = 1, kept: int = 1) -> list[list[list[int]]]:
        """The `kept` most likely prompts for each vector, best first, as ids of the body without special tokens.

        Raises InputError for vectors of another vocabulary or view, and for entries that are not finite.
        """
        check_vectors(vectors, self.shape.view, self.shape.vocab_size)
        if not 1 <= kept <= beams:
            raise InputError(f"{kept} prompts of {beams} beams, expected 1 ≤ kept ≤ beams")
        from transformers import GenerationConfig
        from transformers.modeling_outputs import BaseModelOutput

        self.eval()
        config = self.body.config
        embeddings = self.embeddings(vectors.float().to(self.device))
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        encoded = self.body.get_encoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        how = GenerationConfig(
            max_new_tokens=self.shape.architecture.max_tokens + 1,
            num_beams=beams,
            num_return_sequences=kept,
            do_sample=False,
            use_cache=_equally_deep(config),
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )
        out = self.body.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded), attention_mask=mask, generation_config=how
        )
        special = {config.pad_token_id, config.eos_token_id, config.decoder_start_token_id}
        rows = [[i for i in row if i not in special] for row in out.tolist()]
        return [rows[i : i + kept] for i in range(0, len(rows), kept)]

    def texts(self, rows: Sequence[Sequence[int]], target: Target) -> list[str]:
        """What the body wrote, as text: with its own tokenizer, or the target's."""
        if self.tokenizer is not None:
            return self.tokenizer.batch_decode([list(row) for row in rows], clean_up_tokenization_spaces=False)
        return target.decode(rows)

    @property
    def device(self) -> torch.device:
        return self.body.device


def _equally_deep(config) -> bool:
    """Hugging Face sizes the decoder's cache by the encoder's depth: without it where they differ."""
    pairs = (("num_layers", "num_decoder_layers"), ("encoder_layers", "decoder_layers"))
    return all(getattr(config, a, None) == getattr(config, b, None) for a, b in pairs)


def build(
    vocab_size: int, view: View, architecture: Architecture, seed: int = 0, table: Tensor | None = None
) -> PromptInverter:
    """A new inverter for targets of this vocabulary. A `tiny` body starts from random weights, drawn from the seed.

    table: the target's embedding `[V, D]`, required by the architecture's `table="target"`.
    """
    view.check(vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture.body == "tiny":
            config = tiny_config(vocab_size, architecture)
            body, tokenizer = from_config(config), None
            if architecture.table == "target":
                _start_table(body, vocab_size, table)
        else:
            body, tokenizer = load_body(architecture.body)
        config = json.loads(body.config.to_json_string(use_diff=False))  # as a file gives it back
        net = PromptInverter(Shape(vocab_size, view, architecture, config), body, tokenizer)
        if view.kind == "text" and architecture.body == "tiny":  # both ends speak the target's ids
            rows = net.front.table
            assert isinstance(rows, nn.Embedding)
            with torch.no_grad():
                rows.weight.copy_(body.get_input_embeddings().weight[:vocab_size])
        return net


@torch.no_grad()
def _start_table(body, vocab_size: int, table: Tensor | None) -> None:
    """The body's embedding rows from the target's: its principal components, of mean square 1, as T5's start out."""
    if table is None or len(table) != vocab_size:
        raise InputError(
            f"no embedding table of {vocab_size} rows, expected the target's own: give it, or table='random'"
        )
    weight = body.get_input_embeddings().weight
    rows = table.detach().double().cpu()
    rows = rows - rows.mean(0)
    _, axes = torch.linalg.eigh(rows.T @ rows)
    rows = rows @ axes.flip(1)[:, : weight.shape[1]]
    weight[:vocab_size, : rows.shape[1]] = (rows / rows.square().mean().sqrt()).to(weight.dtype)


def tiny_config(vocab_size: int, how: Architecture) -> dict[str, Any]:
    """A T5 whose vocabulary is the target's and two ids more: padding (also the start) and the end."""
    return {
        "model_type": "t5",
        "vocab_size": vocab_size + 2,
        "d_model": how.width,
        "d_kv": how.width // how.heads,
        "d_ff": how.feed_forward,
        "num_layers": how.layers,
        "num_decoder_layers": how.decoder_layers,
        "num_heads": how.heads,
        "dropout_rate": how.dropout,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": True,
        "pad_token_id": vocab_size,
        "decoder_start_token_id": vocab_size,
        "eos_token_id": vocab_size + 1,
    }


def from_config(config: dict[str, Any]):
    """An encoder-decoder with random weights from a config as Hugging Face writes it; InputError for any other kind
    of model, or for sizes that no inverter has."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    kind = config.get("model_type")
    if kind not in BODIES:
        raise InputError(f"the body is '{kind}', expected one of {', '.join(BODIES)}: an encoder-decoder")
    for name, value in config.items():
        if isinstance(value, int) and value > (_LARGEST if name != "vocab_size" else 2**20):
            raise InputError(f"the body's config has {name} = {value}, expected at most {_LARGEST}")
    rest = {name: value for name, value in config.items() if name not in ("model_type", "auto_map", "architectures")}
    try:
        return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **rest))
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"no {kind} can be built from that config ({' '.join(str(error).split())[:120]})") from error


def load_body(name: str):
    """(model, tokenizer) of a pretrained encoder-decoder: safetensors only, no remote code."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    local = Path(name).is_dir()
    if not local and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise InputError(f"{name} does not exist, expected 'tiny', a local folder or the name of an encoder-decoder")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local)
        if config.model_type not in BODIES:
            raise InputError(f"the body {name} is '{config.model_type}', expected one of {', '.join(BODIES)}")
        body = AutoModelForSeq2SeqLM.from_pretrained(
            name, config=config, use_safetensors=True, trust_remote_code=False, local_files_only=local
        )
        return body, load_tokenizer(name)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"the body {name} cannot be loaded ({' '.join(str(error).split())[:160]}): give a local folder with "
            "config.json, model.safetensors and a tokenizer, or --body tiny to start from random weights"
        ) from error


def load_tokenizer(name: str):
    """The tokenizer of a pretrained body; InputError when it is not there."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=Path(name).is_dir())
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"the tokenizer of {name} cannot be loaded ({' '.join(str(error).split())[:120]}): the folder or name that "
            "the inverter was trained with must still be there"
        ) from error
