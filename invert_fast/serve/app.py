"""The HTTP interface: its paths, and the OpenAPI document that says what they take and give."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from .. import __version__
from .packages import needed

with needed("fastapi"):
    from fastapi import FastAPI, Query
    from fastapi.exceptions import RequestValidationError
    from pydantic import BaseModel, Field
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

from .answer import BODIES, LINES, Answer, not_ready
from .bodies import Asked
from .desk import Desk
from .gate import INVERT, KNOWN, Gate
from .metrics import Metrics
from .problems import KINDS, MEDIA_TYPE, URN, ProblemError
from .worker import Worker

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health(BaseModel):
    """That the process answers, or that it takes requests."""

    status: Literal["alive", "ready"]


class Model(BaseModel):
    """What is served: states that are not of this model and layer are refused, where they say so."""

    version: str = Field(description="of invert_fast")
    model: str = Field(description="fingerprint, as `invert-fast capture` writes it into states files")
    layer: str = Field(description="block:k, final_norm or embeddings")
    width: int = Field(description="numbers a row")
    longest: int = Field(description="rows a text may have")
    strategy: str
    body: int = Field(description="bytes that a request may have")
    texts: int = Field(description="texts that a request may have")


class Problem(BaseModel):
    """RFC 9457. The detail says what was got, what was wanted and the next step."""

    type: str = Field(pattern=f"^{URN}[a-z-]+$")
    title: str
    status: int
    detail: str


def _problems(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Answers of these kinds, for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({KINDS[kind] for kind in kinds}):
        names = ", ".join(kind for kind in kinds if KINDS[kind] == status)
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        found[status] = {"description": names, "content": content}
    return found


_BODY = {
    "required": True,
    "description": "safetensors: `hidden [N, D]` with `offsets [texts + 1]` int64 (what `invert-fast capture` writes), "
    "a batch `[B, T, D]` with its `attention_mask [B, T]`, or tensors `[T, D]` under names of their own, a text each. "
    "Metadata that are heeded: layer, model, dtype, compute_dtype, noise.",
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in BODIES},
}
_ANSWER = {
    "description": "A JSON object a line: one a text as it ends (what `invert-fast invert --output` writes), then "
    '`{"done": true, …}`, or `{"error": {…}}` with a problem when not all of them could be found.',
    "content": {LINES: {"schema": {"type": "string"}}},
}
_INVERT_KINDS = (
    *("not-tensors", "upload-timeout", "too-large", "wrong-media-type", "wrong-parameter", "wrong-states"),
    *("queue-full", "internal", "not-ready", "stopping", "timeout"),
)


def create_app(worker: Worker, desk: Desk, metrics: Metrics, tokens: tuple[bytes, ...] = ()) -> FastAPI:
    """The application around a worker. tokens: one of which requests have to bring; without any, requests have to be
    addressed to this machine by a loopback name."""
    guarded = _problems("unauthorized") if tokens else _problems("wrong-host")
    app = FastAPI(title="invert_fast", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, tokens=tokens, metrics=metrics)

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> Health:
        return Health(status="alive")

    @app.get("/readyz", summary="Whether requests are taken", responses=_problems("not-ready", "stopping"))
    async def readyz() -> Health:
        if desk.stopping:
            raise ProblemError("stopping", "the server is about to stop, expected one that goes on: ask another")
        if not worker.ready.is_set():
            raise not_ready()
        return Health(status="ready")

    @app.get("/v1/model", summary="What is served", responses=guarded)
    async def model() -> Model:
        decoder = worker.inverter.decoder
        return Model(
            version=__version__,
            model=decoder.fingerprint(),
            layer=decoder.layer.name,
            width=decoder.width,
            longest=worker.waiting.longest,
            strategy=worker.strategy.name,
            body=desk.limits.body,
            texts=desk.limits.texts,
        )

    @app.get(
        "/metrics",
        summary="For Prometheus",
        response_class=Response,
        responses={**guarded, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def page() -> Response:
        return Response(metrics.page(), headers={"content-type": _METRICS_TYPE})

    @app.post(
        INVERT,
        summary="Hidden states in, their texts out",
        response_class=Response,
        responses={**_problems(*_INVERT_KINDS), **guarded, 200: _ANSWER},
        openapi_extra={"requestBody": _BODY},
    )
    async def invert(
        tensor: Annotated[
            str | None, Query(max_length=256, description="which tensor holds the states; `*` and `?` name several")
        ] = None,
        states_dtype: Annotated[
            Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2", "int8"] | None,
            Query(description="precision that states were stored in"),
        ] = None,
        compute_dtype: Annotated[
            Literal["float32", "float16", "bfloat16", "int8"] | None, Query(description="and computed in")
        ] = None,
        insist: Annotated[bool, Query(description="use states that say they are of another model or layer")] = False,
        noise: Annotated[
            str | None, Query(max_length=64, description="that was added to the states, such as gaussian:0.05")
        ] = None,
    ) -> Response:
        return Answer(desk, worker, Asked(tensor, states_dtype, compute_dtype, insist or worker.insist, noise))

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(_: Any, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        got = repr(first.get("input"))[:80]
        return _response(
            ProblemError("wrong-parameter", f"the parameter {name} is {got}, {first['msg'].lower()}: see /openapi.json")
        )

    @app.exception_handler(HTTPException)
    async def no_such_thing(_: Any, error: HTTPException) -> Response:
        kind = "method-not-allowed" if error.status_code == 405 else "not-found"
        problem = ProblemError(
            kind, f"there is no such thing here, expected one of {', '.join(KNOWN)}: see /openapi.json"
        )
        problem.headers |= dict(error.headers or {})
        return _response(problem)

    @app.exception_handler(ProblemError)
    async def problem(_: Any, error: ProblemError) -> Response:
        return _response(error)

    app.openapi = lambda: _document(app, bool(tokens))  # type: ignore[method-assign]
    return app


def _response(problem: ProblemError) -> Response:
    return Response(problem.body(), problem.status, problem.headers, MEDIA_TYPE)


def _document(app: FastAPI, guarded: bool) -> dict[str, Any]:
    """The OpenAPI document: what FastAPI makes of the paths, with the problems, and the token where one is needed."""
    if app.openapi_schema is None:
        made = FastAPI.openapi(app)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are not what is answered here
            schemas.pop(name, None)
        if guarded:
            made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for methods in made["paths"].values():
                for operation in methods.values():
                    if "401" in operation["responses"]:
                        operation["security"] = [{"token": []}]
    assert app.openapi_schema is not None
    return app.openapi_schema
