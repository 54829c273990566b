"""A model in this process behind an API's restrictions: to try an extraction before paying for it, and to test."""

from __future__ import annotations

import threading
import time

import numpy as np
import torch

from ..model.decoder import Decoder
from ..types import InputError
from .given import HasDecoder, decoder_of
from .interface import UNKNOWN, Answer, Prompt, Query, RateLimitedError, RefusedError
from .names import TokenNames
from .settings import Restrictions

_CACHED_PROMPTS = 256


class LocalApi:
    """`Api` over logits computed here. Each prompt is run once, in fp32 on the model's device, and remembered.

    model: a `Decoder`, or what has one (an `Inverter`). A prompt is text (`special`: with what the tokenizer adds) or
    token ids; an empty one has no next token.
    """

    def __init__(self, model: Decoder | HasDecoder, restrictions: Restrictions | None = None, *, special: bool = False):
        restrictions = restrictions or Restrictions()
        self.decoder, self.restrictions, self.special = decoder_of(model), restrictions, special
        head = self.decoder.model.get_output_embeddings()
        assert head is not None, "a causal language model has a head"
        self.vocab_size = head.weight.shape[0]
        self.name = f"local:{self.decoder.fingerprint()}"
        self._names = TokenNames.of(self.decoder.tokenizer, self.vocab_size) if restrictions.strings else None
        self.names = "strings" if restrictions.strings else "ids"
        self.untellable = self._names.untellable if self._names else frozenset()
        self._logits: dict[Prompt, np.ndarray] = {}
        self._random = np.random.default_rng(restrictions.seed)
        self._lock = threading.Lock()
        self._slots = 0.0

    def logits(self, prompt: Prompt) -> np.ndarray:
        """The model's own next-token logits `[V]`, fp32: what an extraction is compared with."""
        with self._lock:
            if prompt not in self._logits:
                if len(self._logits) >= _CACHED_PROMPTS:
                    self._logits.clear()
                decoder = self.decoder
                ids = decoder.encode(prompt, self.special) if isinstance(prompt, str) else list(prompt)
                if not 0 < len(ids) <= decoder.max_length:
                    raise InputError(
                        f"the prompt has {len(ids)} tokens, expected 1 to {decoder.max_length}: the next token needs "
                        "one before it, and nothing is cut off silently"
                    )
                decoder.check_ids(ids)
                with torch.no_grad():
                    out = decoder.model(input_ids=torch.tensor([ids], device=decoder.device), use_cache=False)
                self._logits[prompt] = out.logits[0, -1].float().cpu().numpy()
            return self._logits[prompt]

    def ask(self, query: Query) -> Answer:
        """See `Api`."""
        rules = self.restrictions
        self._limit_rate()
        logits = self.logits(query.prompt)
        biased = logits + self._bias(query)
        if rules.noise:
            with self._lock:
                noise = self._random.normal(0.0, rules.noise, logits.shape).astype(np.float32)
            logits, biased = logits + noise, biased + noise
        chosen = self._choose(biased)
        top = self.vocab_size if rules.top is None else rules.top
        if query.top > top and rules.refuse:
            raise RefusedError(f"logprobs is {query.top}, expected at most {top}")
        shown = _log_softmax(biased if rules.after_bias else logits)
        if rules.decimals is not None:
            shown = shown.astype(np.float64).round(rules.decimals)
        count = min(query.top, top)
        ids = np.argpartition(-shown, count - 1)[:count] if 0 < count < len(shown) else np.arange(count)
        ids = ids[np.argsort(-shown[ids], kind="stable")]
        told = count > 0 and (rules.chosen or chosen in ids)
        answer = Answer(chosen, ids, shown[ids].astype(np.float64), float(shown[chosen]) if told else float("nan"))
        return self._as_strings(answer, query) if self._names else answer

    def _bias(self, query: Query) -> np.ndarray:
        rules, added = self.restrictions, np.zeros(self.vocab_size, np.float32)
        if not query.bias or not rules.bias:
            return added
        if rules.bias_entries is not None and len(query.bias) > rules.bias_entries:
            raise RefusedError(f"logit_bias has {len(query.bias)} entries, expected at most {rules.bias_entries}")
        ids, values = np.array(list(query.bias)), np.array(list(query.bias.values()), np.float32)
        if rules.bias_limit is not None:
            if rules.refuse and np.abs(values).max() > rules.bias_limit:
                raise RefusedError(f"logit_bias {np.abs(values).max():g} is beyond ±{rules.bias_limit:g}")
            values = values.clip(-rules.bias_limit, rules.bias_limit)
        added[ids] = values
        return added

    def _choose(self, logits: np.ndarray) -> int:
        if self.restrictions.temperature == 0:
            return int(logits.argmax())
        with self._lock:  # Gumbel: argmax of logits / T + noise is a sample
            gumbel = self._random.gumbel(size=logits.shape)
        return int((logits / self.restrictions.temperature + gumbel).argmax())

    def _as_strings(self, answer: Answer, query: Query) -> Answer:
        assert self._names is not None
        names, among = self._names, query.bias
        ids = np.array([names.find(names.text_of(int(i)), among) for i in answer.ids], np.int64)
        token = names.find(names.text_of(answer.token), among)
        known = ids != UNKNOWN
        return Answer(token, ids[known], answer.log_probs[known], answer.chosen_log_prob)

    def _limit_rate(self) -> None:
        if self.restrictions.per_second is None:
            return
        with self._lock:
            now, step = time.monotonic(), 1.0 / self.restrictions.per_second
            if now < self._slots:
                raise RateLimitedError("too many requests (429)", self._slots - now)
            self._slots = now + step


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """In fp32, as a server computes it."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum(dtype=np.float32))
