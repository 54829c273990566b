"""Finds out what an API really does, before anything is spent on it. Documentation is not asked."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .client import Client
from .interface import UNKNOWN, Answer, ApiError, MalformedError, Prompt, Query, RefusedError

_TOPS = (1000, 100, 20, 5, 1)
_BIASES = (100.0, 30.0, 10.0, 3.0, 1.0)
_LIMITS = (10.0, 20.0, 30.0, 50.0, 80.0, 100.0, 200.0, 400.0)
_ENTRIES = (4096, 1024, 300, 100, 30, 10, 3, 1)
_REPEATS = 3
_NEAR_THRESHOLD, _THRESHOLD_REPEATS = 0.2, 12
_NAMES_CHECKED = 12
FLOAT32 = 2.0**-24
MISSING = -9000.0  # OpenAI writes −9999 for "outside the top"


@dataclass(frozen=True)
class Capabilities:
    """What was measured. reference: the most likely token.

    top: log-probs that come in one call; bias: whether it is honoured; after_bias: whether the log-probs include it;
    chosen: the chosen token's own log-prob is told without its bias, however unlikely it is; bias_limit: a bias up to
    this has its full effect; bias_entries: tokens that can be biased at once (measured only where a method needs it, as
    is the limit); names: `ids` or `strings`; sampled: the token is not always the argmax; noise: how far log-probs of
    one question differ from call to call, nats; resolution: step to which they are rounded; queries: what it took;
    ignored: what it accepts and does not do, in words.
    """

    reference: int
    top: int
    full: bool
    bias: bool
    after_bias: bool
    chosen: bool
    bias_limit: float
    bias_entries: int
    names: str
    sampled: bool
    noise: float
    resolution: float
    queries: int
    ignored: Sequence[str] = ()

    def as_json(self) -> dict:
        """What JSON can hold of it: all fields by name."""
        return asdict(self)

    def describe(self) -> str:
        """One line for a log."""
        lists = f"{self.top} log-probs a call" if self.top else "no log-probs"
        if self.top and self.bias:
            lists += " after bias" if self.after_bias else " before bias"
            lists += ", the chosen token's included" if self.chosen else ""
        bias = f"bias up to {self.bias_limit:g} on {self.bias_entries} tokens" if self.bias else "no logit bias"
        if self.chosen or (self.after_bias and self.top > 1):  # its limit does not matter there, and was not measured
            bias = "logit bias"
        bias = "bias not needed" if self.full else bias
        steady = "sampled" if self.sampled else "argmax"
        ignored = "".join(f"; it {what}" for what in self.ignored)
        steady += f", noise {self.noise:.1g}"
        return f"{lists}; {bias}; {steady}; tokens as {self.names}; {self.queries} queries{ignored}"


def probe(client: Client, prompt: Prompt) -> Capabilities:
    """Measure with up to ~60 queries on `prompt`. Raises ApiError where not even a token comes back."""
    before = client.spent
    plain = [client.ask(Query(prompt)) for _ in range(_REPEATS)]
    listed, noise, asked = _listed(client, prompt)
    top, ignored = len(listed.ids), []
    if top < asked:
        ignored.append(f"takes a request for {asked} log-probs and gives {top}")
    full = top >= client.api.vocab_size
    sampled = len({answer.token for answer in plain}) > 1
    reference = int(listed.ids[0]) if top else _most_common(plain)
    if reference == UNKNOWN:
        raise MalformedError("several ids share the name of the most likely token: give an API that tells token ids")
    sampled = sampled or (top > 0 and noise == 0 and any(answer.token != reference for answer in plain))
    strength, other, taken = (0.0, UNKNOWN, False) if full else _bias_works(client, prompt, reference, listed)
    if taken and not strength:
        ignored.append("takes a logit bias and does not apply it")
    after, chosen, limit, entries = False, False, strength, 1
    if strength:
        if top:
            after, chosen = _after_bias(client, prompt, listed, noise, strength)
        if not (after and top > 1) and not chosen:
            threshold = _threshold(client, prompt, other, strength)
            if np.isnan(threshold):
                limit = 0.0  # clamped so low that not even the second token can be raised to the top
            else:
                sampled = sampled or _flickers(client, prompt, other, threshold)
                limit = strength if sampled else _bias_limit(client, prompt, reference, other, threshold)
        if client.api.names == "strings" and not sampled and strength:
            _check_names(client, prompt, reference, limit or strength)
        if not chosen and limit:
            entries = _bias_entries(client, prompt, reference, limit, top if after and top > 1 else None)
    values = _more_values(client, prompt, listed, after)
    return Capabilities(
        reference=reference,
        top=top,
        full=full,
        bias=strength > 0,
        after_bias=after,
        chosen=chosen,
        bias_limit=limit,
        bias_entries=entries,
        names=client.api.names,
        sampled=sampled,
        noise=noise,
        resolution=_resolution(values),
        queries=client.spent - before,
        ignored=ignored,
    )


def _most_common(answers: list[Answer]) -> int:
    tokens = [answer.token for answer in answers]
    return max(tokens, key=tokens.count)


def _listed(client: Client, prompt: Prompt) -> tuple[Answer, float, int]:
    """The longest list of log-probs the API gives, its spread over repeats, and how many were asked for."""
    refused: ApiError | None = None
    for top in (client.api.vocab_size, *(t for t in _TOPS if t < client.api.vocab_size)):
        try:
            asked = [client.ask(Query(prompt, top=top))]
        except (RefusedError, MalformedError) as error:
            refused = error
            continue
        # A server that samples tells nothing where the token it drew ends the text: what another answer had counts.
        for _ in range(_REPEATS - 1):
            with contextlib.suppress(MalformedError):
                asked.append(client.ask(Query(prompt, top=top)))
        first = max(asked, key=lambda answer: len(answer.ids))
        shown = first.log_probs > MISSING
        first = Answer(first.token, first.ids[shown], first.log_probs[shown], first.chosen_log_prob)
        spread = 0.0
        for again in asked:
            _, a, b = np.intersect1d(first.ids, again.ids, return_indices=True)
            if len(a):
                spread = max(spread, float(np.abs(first.log_probs[a] - again.log_probs[b]).max()))
        if len(first.ids) and not np.isfinite(first.log_probs).all():
            bad = int(first.ids[~np.isfinite(first.log_probs)][0])
            raise MalformedError(
                f"the log-prob of token {bad} is not finite, expected log-probs before any top-k or top-p cut: turn "
                "truncation off in the request"
            )
        order = np.argsort(-first.log_probs, kind="stable")
        return Answer(first.token, first.ids[order], first.log_probs[order], first.chosen_log_prob), spread, top
    if isinstance(refused, RefusedError) and "logprob" not in str(refused).lower():
        raise refused  # refused for another reason than the log-probs
    return Answer(UNKNOWN), 0.0, 0


def _bias_works(client: Client, prompt: Prompt, reference: int, listed: Answer) -> tuple[float, int, bool]:
    """The first bias that moves the argmax off the reference, or 0; the token that takes its place; and whether any
    was accepted."""
    taken = False
    for strength in _BIASES:
        try:
            tokens = [client.ask(Query(prompt, {reference: -strength})).token for _ in range(2)]
        except RefusedError:
            continue
        taken = True
        others = [t for t in tokens if t != reference]
        if len(others) == 2:
            known = [t for t in others if t != UNKNOWN]
            if known:
                return strength, known[0], True
            second = int(listed.ids[1]) if len(listed.ids) > 1 else UNKNOWN
            if second != UNKNOWN:
                return strength, second, True
            raise MalformedError("the second token has a name that several ids share: give an API that tells token ids")
    return 0.0, UNKNOWN, taken


def _after_bias(client: Client, prompt: Prompt, listed: Answer, noise: float, strength: float) -> tuple[bool, bool]:
    """Whether log-probs include the bias, and if not, whether the chosen token's is told whatever its rank.

    A token outside the list is raised to the top. If the reference's log-prob falls (or leaves the list) they do.
    """
    reference, outside = int(listed.ids[0]), np.setdiff1d(np.arange(client.api.vocab_size), listed.ids)
    for token in outside[np.linspace(0, len(outside) - 1, 5).astype(int)]:
        answer = client.ask(Query(prompt, {int(token): strength}, len(listed.ids)))
        was, now = float(listed.log_probs[0]), answer.log_prob(reference)
        if np.isnan(now) or abs(now - was) > 10 * noise + 1e-3:
            return True, False
        if answer.token == token:
            told = answer.log_prob(int(token))
            return False, bool(MISSING < told <= listed.log_probs[-1] + 10 * noise + 1e-3)
    return False, False


def _threshold(client: Client, prompt: Prompt, other: int, strength: float) -> float:
    """The bias at which `other` overtakes the reference, to 0.01: Algorithm 1 on one token. NaN if it never does."""
    low, high = 0.0, strength
    if client.ask(Query(prompt, {other: strength})).token != other:
        return float("nan")
    while high - low > 0.01:
        middle = (low + high) / 2
        if client.ask(Query(prompt, {other: middle})).token == other:
            high = middle
        else:
            low = middle
    return high


def _flickers(client: Client, prompt: Prompt, other: int, threshold: float) -> bool:
    """Just past the threshold an argmax is always `other`; a sample often is not, however peaked the distribution."""
    query = Query(prompt, {other: threshold + _NEAR_THRESHOLD})
    return any(answer.token != other for answer in client.map([query] * _THRESHOLD_REPEATS))


def _bias_limit(client: Client, prompt: Prompt, reference: int, other: int, threshold: float) -> float:
    """The largest bias tried that is neither refused nor clamped.

    With the reference raised to L − s and `other` to L, s just past the threshold, `other` wins unless L was clamped.
    """
    step, limit = threshold + 0.05, threshold
    for size in (s for s in _LIMITS if s > step):
        try:
            answer = client.ask(Query(prompt, {reference: size - step, other: size}))
        except RefusedError:
            break
        if answer.token != other:
            break
        limit = size
    return limit


def _check_names(client: Client, prompt: Prompt, reference: int, strength: float) -> None:
    """Raise a dozen tokens in turn: the name that comes back must be theirs. A server that strips spaces, or a
    tokenizer of another model, would have every later answer taken for another token."""
    plain = np.setdiff1d(np.arange(client.api.vocab_size), [reference, *client.api.untellable])
    picked = np.random.default_rng(0).choice(plain, min(_NAMES_CHECKED, len(plain)), replace=False).tolist()
    answers = client.map([Query(prompt, {token: strength}) for token in picked])
    for token, answer in zip(picked, answers, strict=True):
        if answer.token not in (token, reference):
            raise MalformedError(
                f"token {token} was raised to the top and came back as "
                f"{'a name that is no token' if answer.token == UNKNOWN else f'token {answer.token}'}: give the "
                "tokenizer of the very model, and a server that returns token text unaltered"
            )


def _bias_entries(client: Client, prompt: Prompt, reference: int, limit: float, wanted: int | None) -> int:
    """How many tokens a call may bias: nothing refused, and the last of them honoured."""
    vocab_size = client.api.vocab_size
    others = [i for i in range(vocab_size) if i != reference]
    for count in (n for n in _ENTRIES if n < vocab_size):
        count = min(count, wanted) if wanted else count
        picked = others[: count - 1]
        bias = dict.fromkeys(picked, -limit) | {reference: -limit}
        try:
            answer = client.ask(Query(prompt, bias))
        except RefusedError:
            continue
        except ApiError as error:
            if count > 1 and not isinstance(error, MalformedError):
                continue  # some servers drop a connection over a body that is too long
            raise
        if answer.token != reference and answer.token not in picked:
            return count
    return 1


def _resolution(log_probs: np.ndarray) -> float:
    """Half a step of the coarsest decimal grid that all values lie on (as fp32 has it), 0 for full precision."""
    if len(log_probs) < 3:
        return 0.0
    for decimals in range(6):
        scaled = log_probs * 10.0**decimals
        fp32 = 2 * FLOAT32 * np.abs(scaled) + 1e-6
        if fp32.max() < 0.05 and bool((np.abs(scaled - scaled.round()) <= fp32).all()):
            return 0.5 * 10.0**-decimals
    return 0.0


def _more_values(client: Client, prompt: Prompt, listed: Answer, after: bool) -> np.ndarray:
    """Short lists say little of how values are rounded: under a few biases they differ."""
    if not after or len(listed.ids) >= 8:
        return listed.log_probs
    reference = int(listed.ids[0])
    answers = client.map([Query(prompt, {reference: -0.37 * n}, len(listed.ids)) for n in range(1, 9)])
    return np.concatenate([listed.log_probs, *(answer.log_probs for answer in answers)])
