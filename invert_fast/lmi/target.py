"""The model whose prompts are to be recovered: prompts in, what a view shows of its next-token distributions out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..types import InputError
from .settings import View
from .view import show

_BATCH = 256


class Target:
    """A causal language model and its tokenizer, asked for next-token distributions.

    model: any Hugging Face causal LM (local, in eval mode afterwards); tokenizer: its own.
    """

    def __init__(self, model, tokenizer):
        if tokenizer is None:
            raise InputError("the target was given without a tokenizer, expected one: prompts are texts")
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.device = next(model.parameters()).device
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self.max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    @property
    def table(self) -> Tensor:
        """The target's own input embedding, `[V, D]`: what a black box does not show."""
        return self.model.get_input_embeddings().weight[: self.vocab_size]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens."""
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def decode(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token ids, nothing cleaned up."""
        return [self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) for ids in prompts]

    @torch.no_grad()
    def vectors(self, prompts: Sequence[Sequence[int]], view: View, progress: bool = False) -> Tensor:
        """`[prompts, steps, entries or V]` fp32 on the CPU. Steps after the first follow greedily generated tokens.

        Prompts of equal length share a batch, so nothing is padded; what a prompt is batched with changes its vector
        by rounding only (noise and sampled text are drawn in batch order, from the view's seed). InputError for an
        empty prompt, one that is too long or an id outside of the vocabulary.
        """
        view.check(self.vocab_size)
        self._check(prompts, view.steps)
        out = torch.empty(len(prompts), view.steps, view.width(self.vocab_size))
        generator = torch.Generator().manual_seed(view.seed)
        with tqdm(total=len(prompts), desc="ask the target", unit="prompt", delay=2, disable=not progress) as bar:
            for rows in _equal_lengths(prompts):
                ids = torch.tensor([list(prompts[i]) for i in rows], device=self.device)
                out[rows] = self._steps(ids, view, generator).cpu()
                bar.update(len(rows))
        return out

    def _steps(self, ids: Tensor, view: View, generator: torch.Generator) -> Tensor:
        """One batch of prompts of one length, `[b, T] → [b, steps, width]`."""
        shown, past = [], None
        for step in range(view.steps):
            more = step + 1 < view.steps
            out = self.model(input_ids=ids, past_key_values=past, use_cache=more, logits_to_keep=1)
            logits, past = out.logits[:, -1], out.past_key_values if more else None
            if view.kind == "text":
                chances = (logits.float().cpu() / view.temperature).softmax(-1)
                ids = torch.multinomial(chances, 1, generator=generator).to(self.device)
                shown.append(ids.float())
            else:
                shown.append(show(logits, view, generator))
                ids = logits.argmax(-1, keepdim=True)
        return torch.stack(shown, 1)

    @torch.no_grad()
    def write(self, prompts: Sequence[Sequence[int]], tokens: int, temperature: float, seed: int) -> list[list[int]]:
        """So many tokens the target writes after each prompt: greedily at temperature 0, else sampled. One result a
        prompt, in order; deterministic from the seed."""
        self._check(prompts, tokens)
        out: list[list[int]] = [[] for _ in prompts]
        generator = torch.Generator().manual_seed(seed)
        for rows in _equal_lengths(prompts):
            ids, past, written = torch.tensor([list(prompts[i]) for i in rows], device=self.device), None, []
            for _ in range(tokens):
                got = self.model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
                logits, past = got.logits[:, -1].float(), got.past_key_values
                if temperature:
                    chances = (logits.cpu() / temperature).softmax(-1)
                    ids = torch.multinomial(chances, 1, generator=generator).to(self.device)
                else:
                    ids = logits.argmax(-1, keepdim=True)
                written.append(ids)
            for row, new in zip(rows, torch.cat(written, 1).tolist() if written else [], strict=False):
                out[row] = new
        return out

    def _check(self, prompts: Sequence[Sequence[int]], more: int) -> None:
        most = self.max_length - more + 1
        for index, ids in enumerate(prompts):
            if not 0 < len(ids) <= most:
                raise InputError(
                    f"prompt {index} has {len(ids)} tokens, expected 1 to {most}: the target sees {self.max_length} "
                    "with what it generates"
                )
            if min(ids) < 0 or max(ids) >= self.vocab_size:
                raise InputError(
                    f"prompt {index} has token id {max(ids, key=abs)}, expected 0 to {self.vocab_size - 1}: encode it "
                    "with the target's own tokenizer"
                )


def _equal_lengths(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of prompts in batches of one length, in an order that depends on the prompts alone."""
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(index)
    return [rows[i : i + _BATCH] for _, rows in sorted(by_length.items()) for i in range(0, len(rows), _BATCH)]
