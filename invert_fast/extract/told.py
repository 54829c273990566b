"""Methods for APIs that tell log-probs: no search, so no precision to pay for."""

from __future__ import annotations

import numpy as np

from .capabilities import MISSING
from .interface import MalformedError, Query
from .work import Work

_BIAS, _MOST_BIAS = 40.0, 400.0
_BALANCED = 0.9  # a probability at most this leaves 1 − p with enough digits
_ASKED_AGAIN = 8  # times at most, for a list that did not come
_MOST_TRIES = 64  # of one token: an API that is consistent needs a few
_ROUND = 256  # queries between two updates of what is kept


def one_call(work: Work) -> None:
    """Everything (or the top-k) in one call."""
    count = work.client.api.vocab_size if work.capabilities.full else work.capabilities.top
    query = Query(work.prompt, top=count)
    answer, more = work.client.ask(query), _ASKED_AGAIN
    while not len(answer.ids) and more:  # a server that samples tells nothing where the token it drew ends the text
        answer, more = work.client.ask(query), more - 1
    work.take_listed(answer.ids, answer.log_probs)


def _reference(work: Work) -> float:
    """The log-prob of the most likely token; asked for where it is not known yet."""
    if not np.isfinite(work.bounds.reference_log_prob[0]):
        one_call(work)
    if not np.isfinite(work.bounds.reference_log_prob[0]):
        raise MalformedError(
            f"{work.client.api.name} told the log-prob of token {work.reference} while it was probed and now does not, "
            "expected it in every list: it answers at random"
        )
    return sum(work.bounds.reference_log_prob) / 2


def exact(work: Work) -> None:
    """k − 1 tokens a call: raise them and the reference by the same bias, and they are the top k.

    Differences of their log-probs are then differences of logits, whatever the bias was (Carlini et al. 2024). Tokens
    that did not reach the list are asked again with twice the bias, as far as it goes.
    """
    _reference(work)
    together = max(1, min(work.capabilities.top, work.capabilities.bias_entries) - 1)
    bias = _BIAS
    while len(todo := work.open()):
        parts = _parts(todo, together, work.client.api.untellable)
        told = 0
        for first in range(0, len(parts), _ROUND):
            group = parts[first : first + _ROUND]
            queries = [
                Query(work.prompt, dict.fromkeys([work.reference, *part.tolist()], bias), len(part) + 1)
                for part in group
            ]
            for part, answer in zip(group, work.client.map(queries), strict=True):
                anchor = answer.log_prob(work.reference)
                here = np.isin(answer.ids, part) & (answer.log_probs > MISSING)
                if not np.isfinite(anchor) or not here.any():
                    continue
                work.settle(answer.ids[here], anchor - answer.log_probs[here], work.error(bias))
                told += int(here.sum())
        if not told and bias >= _MOST_BIAS:
            return  # clamped: what is left stays unknown, and is reported so
        bias = min(2 * bias, _MOST_BIAS)


def _parts(ids: np.ndarray, together: int, untellable: frozenset[int]) -> list[np.ndarray]:
    """Groups of `together` tokens, with at most one in each that its name does not tell."""
    odd = np.isin(ids, list(untellable))
    plain, alone, parts = ids[~odd], ids[odd].tolist(), []
    while len(plain) or alone:
        take = [alone.pop()] if alone else []
        count = together - len(take)
        parts.append(np.array([*take, *plain[:count]], np.int64))
        plain = plain[count:]
    return parts


def chosen(work: Work) -> None:
    """One token a call: raise it to the top, and its own log-prob, without the bias, comes with it."""
    reference = _reference(work)
    for bias in (_BIAS, 2 * _BIAS, 100.0, _MOST_BIAS):
        todo = work.open()
        for first in range(0, len(todo), _ROUND):
            part = todo[first : first + _ROUND]
            queries = [Query(work.prompt, {int(token): bias}, work.capabilities.top) for token in part]
            told = np.array(
                [
                    answer.log_prob(int(token)) if answer.token == token else np.nan
                    for token, answer in zip(part, work.client.map(queries), strict=True)
                ]
            )
            here = told > MISSING
            if here.any():
                work.settle(part[here], reference - told[here], work.error(0.0))


def one_of_k(work: Work) -> None:
    """One token at a time by its odds: p'/(1 − p') = e^b p/(1 − p) for a token alone raised by b.

    For lists too short for a reference beside it. The bias is found by search: more while the token does not show,
    less while p' is so near 1 that 1 − p' has lost its digits; then its odds are exact. About two calls a token, one
    once the gaps found so far tell where to begin.
    """
    reference, limit = _reference(work), work.capabilities.bias_limit
    todo = work.open()
    low, bias = np.zeros(len(todo)), np.full(len(todo), min(20.0, limit))
    tries = np.zeros(len(todo), int)
    while len(todo):
        part = slice(0, min(_ROUND, len(todo)))
        queries = [
            Query(work.prompt, {int(token): float(b)}, work.capabilities.top)
            for token, b in zip(todo[part], bias[part], strict=True)
        ]
        answers = zip(todo[part], work.client.map(queries), strict=True)
        shown = np.array([answer.log_prob(int(token)) for token, answer in answers])
        tries[part] += 1
        settled, hopeless = np.zeros(len(todo), bool), tries >= _MOST_TRIES
        for i, log_prob in enumerate(shown):
            if np.isnan(log_prob) or log_prob <= MISSING:
                hopeless[i] |= bias[i] >= limit
                low[i], bias[i] = bias[i], min(limit, bias[i] + 10.0)
                continue
            rest = -np.expm1(min(log_prob, -1e-12))
            odds = min(log_prob - np.log(rest), 13.0)  # beyond, the digits are gone
            settled[i] = rest >= 1 - _BALANCED
            if settled[i]:
                natural = odds - bias[i]  # log p/(1 − p)
                value = natural - np.logaddexp(0.0, natural)
                work.settle(todo[i : i + 1], np.array([reference - value]), work.error(bias[i]) / rest)
            else:
                bias[i] = max(low[i] + 0.5, bias[i] - odds + 1.0)  # to p' = 0.73, where it still shows
        drop = settled | hopeless
        known = work.tokens[np.isfinite(work.bounds.high[work.tokens])]
        fresh = np.arange(len(todo)) >= part.stop
        if len(known) > 64:  # begin at the middle of what was found
            bias[fresh] = min(limit, float(np.quantile(work.bounds.low[known], 0.5)) + 1.0)
        todo, low, bias, tries = todo[~drop], low[~drop], bias[~drop], tries[~drop]
