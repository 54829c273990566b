"""The inverter itself: vectors → pseudo-embeddings → a Hugging Face encoder-decoder → the prompt (2311.13647).

The body (`bodies.py`) is a pretrained one from a local folder or the Hub (the paper's `t5-base`), which speaks its own
tokenizer, or one built from a config, which speaks the target's token ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..types import InputError
from .bodies import from_config, load_body, tiny_config
from .estimates import Estimates
from .settings import Architecture, View
from .target import Target
from .unroll import RunningMean, TextRows, Unroll
from .view import check_vectors
from .whiten import Whiten

_WHITEN_PROMPTS = 4096
_IGNORED = -100  # torch's cross-entropy skips it


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
