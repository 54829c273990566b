"""The adapter to Hugging Face (with `twin.py`, which copies a body's structure): any decoder, no code per architecture.

The user's model is never patched. `Decoder` runs a structural twin of its body (same parameter tensors, own config and
own module objects) that stops at the layer that was captured and whose attention sees the lanes' prefix storage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..ops.best_two import scores_of
from ..ops.linear import linear, share_packs
from ..types import InputError
from . import attention
from .embedding import BLOCK, Embedding
from .layer import Layer
from .onward import Onward, onward_of
from .own_pass import OwnPass, ends_normed, read
from .precision import products
from .prefix import JointCall, PrefixCall
from .reading import AS_CAPTURED, Reading, positions_from
from .row_table import RowTable
from .trial import FAILS, choose_path, longest_text
from .twin import after_blocks, body_of, final_norm
from .wrapped import bare, device_of, fingerprint_of, hooks_of, value_of


class Decoder:
    """A Hugging Face decoder seen from one layer: embeddings in, hidden states out, prefix KV on the side.

    model: any causal language model; tokenizer: may be None (ids only); layer: see `Layer`; path: `fast` (a twin that
    attends in our way), `own` (the model's own forward pass), or whichever gives the states of its own forward pass, as
    a trial at load tells. own: the model's own pass, where that is the one.
    Raises InputError for encoder-decoders, models that look ahead, and layers out of range.
    """

    body: nn.Module  # our twin, of a decoder that has no pass of its `own`
    reading = AS_CAPTURED  # how states are compared and where texts begin, see `read_as`

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer=None,
        layer: int | str = -1,
        path: str | None = None,
    ):
        model = bare(model)
        config = model.config.get_text_config()
        if getattr(model.config, "is_encoder_decoder", False):
            raise InputError(
                f"'{model.config.model_type}' is an encoder-decoder, expected a decoder-only model: its "
                "states do not determine the text token by token"
            )
        if any(module.training for module in model.modules()):  # an `Inverter` has set that aside
            model.eval()
        self.model, self.tokenizer = model, tokenizer
        self.device = device_of(model)
        self.layer = Layer(layer, config.num_hidden_layers, ends_normed(model, self.device))
        self._bodies: dict[torch.dtype, nn.Module] = {}
        self._full: Decoder | None = self if self.layer.near_head else None
        self.embedding = Embedding(model.get_input_embeddings(), self.device)
        self.vocab_size, self.dtype = len(self.embedding), self.embedding.dtype
        self.blocks = self.layer.depth
        self.max_length = longest_text(config)
        self.usable_ids = min(self.vocab_size, len(tokenizer)) if tokenizer is not None else self.vocab_size
        self.own: OwnPass | None = None
        self.joins = False  # whether several calls may go through one pass
        choose_path(self, path)
        self.width = config.hidden_size if self.layer.depth < self.layer.blocks else _output_width(self)

    def read_as(self, reading: Reading) -> Decoder:
        """This decoder, from now on of states that are read so. Before anything is measured on it."""
        if reading.position_offset >= self.max_length:
            raise InputError(
                f"position offset {reading.position_offset} is behind the last of this model's {self.max_length} "
                "positions: give the number of padding tokens before the text"
            )
        self.check_ids(list(reading.prefix))
        self.max_length -= reading.position_offset
        self.reading = reading
        if self.own is not None:
            self.own.read_as(reading, self.device)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings as the model sees them: `[...] → [..., D_embedding]`."""
        return self.embedding.rows(ids)

    def run(self, embeds: Tensor, positions: Tensor, call: PrefixCall | JointCall, compute: str = "float32") -> Tensor:
        """One pass of the twin: `[B, K, D_embedding]` at `positions [B, K]` → states `[B, K, D]`; KV goes to `call`.

        It runs in the precision of `embeds`: that of the model, or a lower one for searching. compute: see `products`;
        whatever is verified takes the default of both.
        """
        body = self.body if embeds.dtype == self.dtype else self._body_in(embeds.dtype)
        if self.reading.position_offset:
            positions = positions + self.reading.position_offset
        with attention.attending(call), products(self.device, compute):
            states = body(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
        return self.reading.seen(states)

    def _body_in(self, dtype: torch.dtype) -> nn.Module:
        """A copy of the twin in another precision, made once: the only copy of weights there is."""
        if dtype not in self._bodies:
            made = nn.Module.to(copy.deepcopy(self.body), dtype).eval()
            for ours, theirs in zip(made.modules(), self.body.modules(), strict=True):
                for name, table in theirs.named_buffers(recurse=False):
                    if "inv_freq" in name:  # rotation angles grow with the position: models keep them in fp32
                        setattr(ours, name, table)
            self._bodies[dtype] = made
        return self._bodies[dtype]

    @torch.no_grad()
    def states(self, ids: Tensor) -> Tensor:
        """States of whole texts by our pass, `[B, T] → [B, T, D]`: cheaper than `capture`, and equal up to rounding."""
        if self.own is not None:
            return self.own.states(ids)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        return self.run(self.embed(ids), positions, PrefixCall(causal=True))

    def full(self) -> Decoder:
        """The same model seen from its last layer (itself where it already is): what the next-token prior needs."""
        if self._full is None:
            path = None if self.own is None else "own"  # the blocks behind this layer may not run in our way
            offset = Reading(self.reading.position_offset)
            self._full = Decoder(self.model, self.tokenizer, "final_norm", path=path).read_as(offset)
            self._full.embedding = self.embedding
            if self._full.own is None:
                share_packs(self._full.body, self.body)
            elif self.own is not None:  # of what the trial found out nothing hangs on the layer
                self._full.own.keeps, self._full.own.at_once = self.own.keeps, self.own.at_once
        return self._full

    @cached_property
    def onward(self) -> Onward | None:
        """The blocks behind an inner layer; None where they cannot be run from its states."""
        return onward_of(self)

    def ends(self, hidden: Tensor) -> Tensor | None:
        """Of states of whole texts `[B, T, D]`, what tells the next token at every position, for `head_input`: they
        themselves at the last layer, where an inner layer's lead to, or None."""
        if self.layer.near_head:
            return hidden
        return None if self.onward is None else self.onward(hidden).float()

    @torch.no_grad()
    def log_probs(self, states: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Next-token log-probabilities of states of the last layer, `[..., D] → [..., V]` fp32; ids past the
        tokenizer's get −inf. tokens `[n]`: of a choice among these alone, `[..., n]`. A proposal only: logit scaling
        that keeps the order is left out."""
        head, states = self.model.get_output_embeddings(), self.head_input(states)
        assert head is not None, "a causal language model has a head"
        if tokens is not None and type(head) is nn.Linear and head.weight.device == states.device:
            bias = None if head.bias is None else head.bias[tokens]
            return nn.functional.linear(states, head.weight[tokens], bias).float().log_softmax(-1)
        scores = self._logits(states)
        return (scores if tokens is None else scores[..., tokens]).log_softmax(-1)

    @torch.no_grad()
    def log_normaliser(self, rows: Tensor) -> Tensor:
        """log Σ exp of all logits of rows that the head takes, `[n, D] → [n]` fp32."""
        return self._logits(rows.to(self.dtype)).logsumexp(-1)

    def _logits(self, rows: Tensor) -> Tensor:
        """What the head makes of rows `[..., D]`: fp32 `[..., V]`, −inf for ids past the tokenizer's, and for those
        whose embeddings are no numbers."""
        head = self.model.get_output_embeddings()
        assert head is not None, "a causal language model has a head"
        plain = type(head) is nn.Linear and head.weight.device == rows.device and not hooks_of(head)
        if plain and self.embedding.reads_faster(head.weight):
            scores = self.embedding.times(rows, head.bias)
        else:
            scores = (linear(rows, head.weight.T, head.bias) if plain else head(rows)).float().to(rows.device)
        scores[..., self.usable_ids :] = float("-inf")
        return scores.index_fill_(-1, spoilt, float("-inf")) if len(spoilt := self.embedding.spoilt) else scores

    def head_input(self, states: Tensor) -> Tensor:
        """States of the last layer, or what `ends` gives of others, as the head takes them, in the model's dtype."""
        raw = self.layer.near_head and not self.layer.normed
        return (final_norm(self.model, states) if raw else states).to(self.dtype)

    @torch.no_grad()
    def logits_of(self, states: Tensor, ids: Tensor) -> Tensor:
        """As `log_probs` of the tokens `ids [n, C]` (−1 for none) alone, up to a constant for each of the `states
        [n, D]`: `[n, C]`."""
        head = self.model.get_output_embeddings()
        assert head is not None, "a causal language model has a head"
        weight, rows = value_of(head, "weight"), self.head_input(states)  # of a model that is spread, wherever it lies
        scores = scores_of(rows.to(weight.device), weight, ids.to(weight.device)).to(rows.device)
        return scores if head.bias is None else scores + value_of(head, "bias").to(rows.device)[ids.clamp_min(0)]

    @property
    def tied_scale(self) -> float | None:
        """Embedding rows over the rows of the head, where these are the same matrix and nothing is added; else None."""
        head = self.model.get_output_embeddings()
        tied = head is not None and head.weight.data_ptr() == self.embedding.weight.data_ptr()  # type: ignore[operator]
        return self.embedding.scale if tied and head.bias is None else None  # type: ignore[union-attr]

    @torch.no_grad()
    def seen_rows(self) -> RowTable:
        """Embedding rows `[V, D_embedding]` less what no state of this layer can show.

        The final norm takes a common shift (LayerNorm) or a common length (RMSNorm) out of a row, so rows that differ
        only in that are near each other. Very short rows drown in a state: they stay short.
        """
        embedding, (size, width) = self.embedding, self.embedding.shape
        if not self.layer.normed:
            return self._table(embedding.__getitem__)
        try:
            final_norm(self.model, embedding.rows(torch.zeros(1, dtype=torch.long, device=self.device)))
        except (InputError, *FAILS):  # rows of another width than states (OPT-350m), or no norm that is by itself
            return RowTable(embedding.__getitem__, size, width, self.device)
        usual = torch.cat([part.norm(dim=-1) for part in embedding.blocks()]).nanmedian()
        norm = after_blocks(self.model)

        def seen(ids: Tensor) -> Tensor:
            rows = embedding.rows(ids)
            lengths = rows.float().norm(dim=-1, keepdim=True)
            return norm(rows).float() * (2 * lengths / usual).clamp_max(1.0)

        return self._table(torch.no_grad()(seen))

    def _table(self, make: Callable[[Tensor], Tensor]) -> RowTable:
        """Of rows that `make` gives, less what states that are read so do not show."""
        reading, (size, width) = self.reading, self.embedding.shape
        if not reading.kind:
            return RowTable(make, size, width, self.device)
        ids = torch.arange(size, device=self.device).split(BLOCK)
        usual = torch.cat([reading.level(make(part)).norm(dim=-1) for part in ids]).nanmedian()
        return RowTable(lambda some: reading.seen_rows(make(some), usual), size, width, self.device)

    def capture(self, ids: Tensor) -> Tensor:
        """States by the model's own, unmodified forward pass: `[B, T] → [B, T, D]`. Independent of `run`."""
        if self.own is not None:
            with torch.no_grad():
                return self.own.states(ids)
        return capture(self.model, self.layer, ids, self.reading)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; `special=True` adds what the tokenizer adds (often a BOS, which then has a row)."""
        if self.tokenizer is None:
            raise InputError("this model was given without a tokenizer: pass token ids, or a tokenizer")
        return self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    def check_ids(self, ids: list[int]) -> None:
        """InputError for a token id that this model has not."""
        if bad := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise InputError(
                f"token id {bad[0]} is outside this model's vocabulary of {self.vocab_size}: "
                "tokenise with this model's own tokenizer"
            )

    def decode(self, ids: list[int]) -> str | None:
        """Text of ids, nothing skipped or cleaned up; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def fingerprint(self) -> str:
        """`family:16 hex digits` over parameter names, shapes and a sample of values, rounded to bf16 so that loading
        the same checkpoint in another precision does not change it."""
        if not hasattr(self, "_fingerprint"):
            self._fingerprint = fingerprint_of(self.model)
        return self._fingerprint

    @cached_property
    def parameters(self) -> int:
        """How many numbers the model's weights are."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def identity(self) -> tuple[str, str, str]:
        """What a figure measured on this decoder is of: model, layer as its states are read, and how much of the
        vocabulary is in use."""
        place = " ".join(part for part in (self.layer.name, self.reading.name) if part)
        return self.fingerprint(), place, str(self.usable_ids)


@torch.no_grad()
def capture(model: PreTrainedModel, layer: Layer, ids: Tensor, reading: Reading = AS_CAPTURED) -> Tensor:
    """States of a layer by a model's own forward pass, as they are read: `[B, T] → [B, T, D]`."""
    places = positions_from(reading.position_offset, ids)
    return reading.seen(read(body_of(model), layer, input_ids=ids, use_cache=False, **places)[0]).to(ids.device)


def _output_width(decoder: Decoder) -> int:
    ids = torch.zeros(1, 1, dtype=torch.long, device=decoder.device)
    return decoder.capture(ids).shape[-1]
