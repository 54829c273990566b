"""OpenAI-compatible servers: completions and chat. Keys come from the environment only and are never shown."""

from __future__ import annotations

import email.utils
import os
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..types import InputError
from .interface import (
    UNKNOWN,
    Answer,
    ApiError,
    MalformedError,
    Query,
    RateLimitedError,
    RefusedError,
    UnauthorisedError,
    UnavailableError,
)
from .names import TokenNames
from .settings import DIALECTS, Endpoint
from .transport import Reply, Transport, json_object

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# llama.cpp: log-probs after bias, of the whole vocabulary: no sampler but the temperature may touch them
_AFTER_BIAS = {"post_sampling_probs": True, "temperature": 1.0, "samplers": ["temperature"]}
_SHOWN = 300  # characters of an error that a server sent
_LARGEST_VOCABULARY = 1 << 24


class HttpApi:
    """`Api` over HTTP. Ids are taken from the answer where the server gives them (llama.cpp, vLLM's `token_id:`),
    else from the tokens' bytes or text, which needs `names`, the model's own vocabulary."""

    def __init__(self, endpoint: Endpoint, names: TokenNames | None = None):
        self.endpoint, self._tokens = endpoint, names
        self._key = os.environ.get(endpoint.key_variable, "").strip()
        parts = urlsplit(endpoint.url)
        _check_url(parts, bool(self._key), endpoint.key_variable)
        if endpoint.dialect not in DIALECTS:
            raise InputError(f"dialect '{endpoint.dialect}' is unknown, expected one of {', '.join(DIALECTS)}")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._transport = Transport(endpoint.url, headers, endpoint.timeout)
        listed = self._models()
        self.model = endpoint.model or listed.get("id") or ""
        self.llama = endpoint.dialect == "llama.cpp" or (
            endpoint.dialect == "auto" and listed.get("owned_by") == "llamacpp"
        )
        meta = listed.get("meta")
        told = meta.get("n_vocab") if isinstance(meta, dict) else None
        size = endpoint.vocab_size or told or (names.size if names else None)
        if not isinstance(size, int) or not 2 <= size <= _LARGEST_VOCABULARY:
            raise InputError(
                f"{endpoint.url} tells of a vocabulary of {size} tokens, expected 2 to {_LARGEST_VOCABULARY:,}: give "
                "its tokenizer (--tokenizer) or --vocab-size"
            )
        self.vocab_size = size
        self.name = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}#{self.model}"
        self.names = "ids" if self.llama else "strings"
        self._end = self._ask_end_token() if self.llama else None
        self.untellable = frozenset() if names is None else names.untellable

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def ask(self, query: Query) -> Answer:
        """See `Api`."""
        path = "chat/completions" if self.endpoint.chat else "completions"
        choice = self._choice(self._send("POST", path, self._request(query), query.top))
        try:
            return self._answer(choice, query)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise MalformedError(
                f"{self.endpoint.url}: the answer is not in OpenAI's form ({type(error).__name__}: {error}), expected "
                "`choices` with a text or message and, where asked for, `logprobs`"
            ) from error

    def _request(self, query: Query) -> dict[str, Any]:
        end, prompt = self.endpoint, query.prompt
        body: dict[str, Any] = {"model": self.model, "max_tokens": 1, "temperature": 0}
        if end.chat:
            if not isinstance(prompt, str):
                raise InputError("a chat takes text, not token ids: give the prompt as text")
            system = [{"role": "system", "content": end.system}] if end.system else []
            body["messages"] = [*system, {"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        if query.bias:
            body["logit_bias"] = {str(token): float(bias) for token, bias in query.bias.items()}
        top = query.top
        if self.llama:
            body["cache_prompt"] = False  # what is cached is rounded otherwise: up to 1e-3 nats
            if top:
                body |= _AFTER_BIAS
            else:
                top = 1  # for the id of the chosen token; its log-prob is not used
        if top:
            body |= {"logprobs": True, "top_logprobs": top} if end.chat else {"logprobs": top}
        return body | end.extra

    def _answer(self, choice: dict[str, Any], query: Query) -> Answer:
        told = choice.get("logprobs")
        if not told or told.get("content") == []:
            text = (choice["message"]["content"] if self.endpoint.chat else choice["text"]) or ""
            if not text and choice.get("finish_reason") == "stop":  # servers say nothing of the token that ends a text
                return Answer(self._end_token(query))
            if not text or "\ufffd" in text:  # nor does llama.cpp of the first bytes of a character
                return Answer(UNKNOWN if self._tokens is None else self._named(text, query))
            if query.top:
                raise MalformedError(f"{self.endpoint.url}: no logprobs in the answer, {query.top} were asked for")
            return Answer(self._named(text, query))
        if "content" in told:
            first = told["content"][0]
            rows = first.get("top_logprobs", first.get("top_probs", []))
            ids = [self._id(row, query) for row in rows]
            values = [_log_prob(row) for row in rows]
            token, value = self._id(first, query), _log_prob(first)
        else:  # the older form: parallel lists, and a map from name to log-prob
            listed = (told.get("top_logprobs") or [{}])[0] or {}
            ids = [self._named(name, query) for name in listed]
            values = [float(v) for v in listed.values()]
            token, value = self._named(told["tokens"][0], query), float(told["token_logprobs"][0])
        if not query.top:
            return Answer(token)
        numbers, found = np.array(ids, np.int64), np.array(values, np.float64)
        if not np.isfinite(value):
            value = float("nan")
        keep = numbers != UNKNOWN
        if self.llama and not self.endpoint.extra.get("post_sampling_probs", True):
            keep &= np.isfinite(found)
        return Answer(token, numbers[keep], found[keep], value)

    def _end_token(self, query: Query) -> int:
        if self._end is not None:
            return self._end
        return UNKNOWN if self._tokens is None else self._tokens.find("", query.bias)

    def _ask_end_token(self) -> int | None:
        """llama.cpp tells it; elsewhere it has no name, and is told by being the only such token that was raised."""
        root = self.endpoint.url.rstrip("/").removesuffix("/v1")
        try:
            text = self._send("GET", f"{root}/props", None)["eos_token"]
            ids = self._send("POST", f"{root}/tokenize", {"content": text, "parse_special": True})["tokens"]
        except (ApiError, KeyError):
            return None
        known = isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], int) and 0 <= ids[0] < self.vocab_size
        return ids[0] if known else None

    def _id(self, row: dict[str, Any], query: Query) -> int:
        if isinstance(row.get("id"), int):
            return self._within(row["id"])
        data = row.get("bytes")
        if data and not isinstance(data, list):
            raise TypeError(f"`bytes` are a {type(data).__name__}")  # of a number, `bytes` makes as many zeros
        return self._named(bytes(data) if data else row["token"], query)

    def _within(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise MalformedError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return token

    def _named(self, name: str | bytes, query: Query) -> int:
        if isinstance(name, str) and name.startswith("token_id:"):
            return self._within(int(name.removeprefix("token_id:")))
        if self._tokens is None:
            raise InputError(f"{self.endpoint.url} names tokens by text: give the model's tokenizer (--tokenizer)")
        if isinstance(name, str) and name.startswith("bytes:"):
            name = name.removeprefix("bytes:").encode().decode("unicode_escape").encode("latin-1")
        return self._tokens.find(name, query.bias)

    def _models(self) -> dict[str, Any]:
        """The first model that the server lists; nothing where it lists none."""
        try:
            data = self._send("GET", "models", None).get("data")
        except (RefusedError, MalformedError):
            return {}
        listed = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
        wanted = [row for row in listed if row.get("id") == self.endpoint.model]
        return (wanted or listed or [{}])[0]

    def _send(self, method: str, path: str, body: dict[str, Any] | None, entries: int = 0) -> dict[str, Any]:
        try:
            reply = self._transport.send(method, path, body, entries)
        except UnavailableError as error:
            raise UnavailableError(self._clean(str(error))) from error
        if reply.status >= 300:
            raise self._failure(reply)
        return json_object(self.endpoint.url, reply.content)

    def _failure(self, reply: Reply) -> ApiError:
        code, url = reply.status, self.endpoint.url
        said = self._clean(reply.text)[:_SHOWN].strip() or reply.reason
        if code == 429:
            return RateLimitedError(f"{url}: too many requests (429)", _retry_after(reply.headers.get("Retry-After")))
        if code in (401, 403):
            return UnauthorisedError(
                f"{url} refused the key ({code}: {said}): put the right one into the environment variable "
                f"{self.endpoint.key_variable}"
            )
        if code >= 500 or code in (408, 409, 425):
            return UnavailableError(f"{url}: server error {code} ({said})")
        if code < 400:
            return RefusedError(
                f"{url} redirects ({code}), which is not followed lest the key goes elsewhere: give the target"
            )
        return RefusedError(f"{url} refused the request ({code}: {said})")

    def _clean(self, text: str) -> str:
        """Servers quote keys in their errors."""
        return text.replace(self._key, "[key]") if self._key else text

    def _choice(self, answer: dict[str, Any]) -> dict[str, Any]:
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise MalformedError(f"{self.endpoint.url}: the answer has no `choices`: is this an OpenAI server?")
        return choices[0]

    def __repr__(self) -> str:
        return f"HttpApi({self.name!r})"


def _log_prob(row: dict[str, Any]) -> float:
    if "logprob" in row:
        return float(row["logprob"])
    probability = float(row["prob"])
    return float(np.log(probability)) if probability > 0 else float("-inf")


def _retry_after(value: str | None) -> float | None:
    """Seconds, or a date; None for what is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _check_url(parts, key: bool, variable: str) -> None:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"API '{parts.geturl()}' is no http(s) URL, expected such as http://127.0.0.1:8080/v1")
    if parts.username or parts.password or parts.query:
        raise InputError(
            f"the API's URL carries a password or a query, expected a plain one: put the key into {variable}"
        )
    if key and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise InputError(
            f"the key in {variable} would go to {parts.hostname} unencrypted: use https, or unset the variable"
        )
