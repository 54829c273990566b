"""Asks a server of `invert-fast serve`: states in, recoveries out as they are found."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import InputError, States
from .packages import needed

if TYPE_CHECKING:
    import httpx
    from torch import Tensor

_TRY_AGAIN = (429, 503)


class ServeError(RuntimeError):
    """The server answered with a problem, or not to the end. status: of HTTP, None where the answer was cut short;
    kind: `queue-full`, `wrong-states` …; retry_after: seconds, where it said so."""

    def __init__(self, detail: str, status: int | None = None, kind: str = "", retry_after: float | None = None):
        super().__init__(detail)
        self.status, self.kind, self.retry_after = status, kind, retry_after


@dataclass(frozen=True)
class Found:
    """One recovered text, as `invert-fast invert --output` writes it. index: of the text among those that were sent;
    status: in words; residual, margin: None where nothing was tried; source: the tensor it is from, of several."""

    index: int
    token_ids: list[int]
    text: str | None
    certified: bool
    status: list[str]
    residual: list[float | None]
    margin: list[float | None]
    first_failure: int | None
    forward_tokens: int
    seconds: float
    source: str | None = None
    alternatives: dict[int, list[int]] = field(default_factory=dict)
    trace: dict[str, Any] | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Found:
        others = {int(position): ids for position, ids in row.get("alternatives", {}).items()}
        known = {name: value for name, value in row.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "alternatives": others})


class Client:
    """One server. token: what it asks for; retries: how often a request that finds it full is sent again, after as many
    seconds as it says; timeout: seconds without a byte. Close it, or use it in a `with`.

    `http` is another httpx client to go through, as for a proxy or certificates of one's own.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8017",
        token: str | None = None,
        *,
        retries: int = 4,
        timeout: float = 660.0,
        http: httpx.Client | None = None,
    ):
        with needed("httpx"):
            import httpx

        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._http = http or httpx.Client(base_url=url, timeout=httpx.Timeout(timeout, connect=10.0))
        self._headers, self.retries = headers, retries

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def model(self) -> dict[str, Any]:
        """What is served: fingerprint, layer, width, and the longest text."""
        answer = self._http.get("/v1/model", headers=self._headers)
        if answer.status_code != 200:
            raise _problem(answer)
        return answer.json()

    def invert(
        self,
        states: Sequence[States | Tensor] | States | Tensor | bytes | Path,
        *,
        tensor: str | None = None,
        states_dtype: str | None = None,
        compute_dtype: str | None = None,
        insist: bool = False,
        noise: str | None = None,
    ) -> Iterator[Found]:
        """Texts of these states, each as soon as it is found; `index` says which one it is.

        states: `[T, D]` tensors or `States`, one or a list of them (of one layer and precision), a safetensors file, or
        the bytes of one; the rest: as the server's parameters. Stopping early frees the server's work. Raises
        ServeError for what the server refuses, and where its answer ends before all texts are there.
        """
        body = states.read_bytes() if isinstance(states, Path) else states
        body = body if isinstance(body, bytes) else packed(body)
        given = {"tensor": tensor, "states_dtype": states_dtype, "compute_dtype": compute_dtype, "noise": noise}
        parameters = {name: value for name, value in given.items() if value is not None}
        if insist:
            parameters["insist"] = "true"
        for attempt in range(self.retries + 1):
            try:
                yield from self._invert(body, parameters)
                return
            except ServeError as error:  # only before the first text: after it there is no status
                if error.status not in _TRY_AGAIN or attempt == self.retries:
                    raise
                time.sleep(error.retry_after or 1.0)

    def _invert(self, body: bytes, parameters: dict[str, str]) -> Iterator[Found]:
        headers = {**self._headers, "content-type": "application/octet-stream"}
        with self._http.stream("POST", "/v1/invert", content=body, params=parameters, headers=headers) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _problem(answer)
            for line in answer.iter_lines():
                row = json.loads(line)
                if "error" in row:
                    raise ServeError(row["error"]["detail"], None, _kind(row["error"]))
                if row.get("done"):
                    return
                yield Found.of(row)
        raise ServeError("the answer ended before all texts were there, expected its last line: send it again")


def packed(states: Sequence[States | Tensor] | States | Tensor) -> bytes:
    """The body that holds these texts: their rows one after the other, as in a states file."""
    import torch
    from safetensors.torch import save
    from torch import Tensor

    items = [states] if isinstance(states, (States, Tensor)) else list(states)
    texts = [one if isinstance(one, States) else States(one) for one in items]
    precisions = {(one.dtype, one.compute_dtype, one.noise and one.noise.spec) for one in texts}
    origins = {(str(one.layer), one.model) for one in texts if one.model is not None}
    if len(precisions) != 1 or len(origins) > 1:
        raise InputError(
            f"there are states of {len(precisions)} precisions and kinds of noise, and {len(origins)} known models and "
            "layers, expected those of one: send each kind by itself"
        )
    lengths = torch.tensor([0, *map(len, texts)]).cumsum(0)
    known = zip(("dtype", "compute_dtype", "noise"), precisions.pop(), strict=True)
    about = {name: value for name, value in known if value is not None}
    about |= dict(zip(("layer", "model"), next(iter(origins), ()), strict=False))
    rows = torch.cat([one.hidden.detach().cpu() for one in texts]).contiguous()
    return save({"hidden": rows, "offsets": lengths}, about)


def _problem(answer: httpx.Response) -> ServeError:
    try:
        row = answer.json()
        detail, kind = row["detail"], _kind(row)
    except (ValueError, KeyError, TypeError):
        detail, kind = f"the server answered {answer.status_code}, expected a problem in JSON: is it invert-fast?", ""
    wait = answer.headers.get("retry-after", "")
    return ServeError(detail, answer.status_code, kind, float(wait) if wait.isdecimal() else None)


def _kind(row: dict[str, Any]) -> str:
    return str(row.get("type", "")).rpartition(":")[2]
