"""The OpenAPI document says what a server takes and answers: Schemathesis asks all of it, over a loopback port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings

from invert_fast.serve import Limits
from invert_fast.serve.gate import INVERT, KNOWN

from .conftest import serving

if TYPE_CHECKING:  # seconds to import: for those that run these tests, not for all that collect them
    from schemathesis import Case
    from schemathesis.specs.openapi.schemas import OpenApiSchema

TOKEN = "a-token-of-more-than-sixteen"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def api(inverter) -> Iterator[OpenApiSchema]:
    from schemathesis import openapi

    with serving(inverter, tokens=(TOKEN.encode(),), limits=Limits(timeout=5, upload=5, grace=0.2)) as server:
        yield openapi.from_url(f"{server.url}/openapi.json", headers=AUTH)


ASKED = [(path, "positive") for path in sorted({*KNOWN} - {"/openapi.json"})]


@pytest.mark.parametrize(("path", "mode"), [*ASKED, (INVERT, "negative")])
def test_answers_are_as_the_document_says(api, path, mode):
    """What the document allows and, where a request says anything, what it does not."""
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    for method in api[path]:
        operation = api[path][method]

        @settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
        @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
        def asks(case: Case) -> None:
            # a body is any bytes to the document, and most of them are no safetensors: those are refused, as it says
            case.call_and_validate(headers=AUTH, excluded_checks=[positive_data_acceptance])

        asks()


def test_the_document_says_what_is_needed(api):
    document = api.raw_schema
    invert = document["paths"]["/v1/invert"]["post"]
    assert set(invert["responses"]) == {"200", *map(str, (400, 401, 408, 413, 415, 422, 429, 500, 503, 504))}
    assert invert["security"] == document["paths"]["/metrics"]["get"]["security"] == [{"token": []}]
    assert "security" not in document["paths"]["/readyz"]["get"]
    assert set(invert["responses"]["200"]["content"]) == {"application/x-ndjson"}
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
