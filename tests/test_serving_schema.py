"""The OpenAPI description holds: what it allows finds no server error, and what comes fits it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from specplug.batching import BatchDecoder
from tests_support.serving import Running, serving


@pytest.fixture(scope="module")
def server(tiny_bundles: dict[str, Path]) -> Iterator[Running]:
    with (
        BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=4, draft_tokens=4) as decoder,
        serving(decoder, max_tokens=8) as running,
    ):
        yield running
        running.wait_until_free()


@pytest.mark.parametrize(
    ("method", "path", "examples"),
    [
        ("POST", "/v1/chat/completions", 40),
        ("POST", "/v1/completions", 40),
        ("GET", "/v1/models", 1),
        ("GET", "/v1/models/{model}", 10),
        ("GET", "/health", 1),
        ("GET", "/ready", 1),
        ("GET", "/metrics", 1),
    ],
)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_requests_of_all_kinds(server, method, path, examples, mode) -> None:
    """A valid one may still ask for more than there is, or for another model."""
    if mode is GenerationMode.NEGATIVE and method == "GET":
        return  # nothing can be wrong with these
    described = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    operation = described[path][method]
    answered = []

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def run(case: schemathesis.Case) -> None:
        response = case.call(timeout=20)
        answered.append(response.status_code)
        assert response.status_code < 500
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    run()
    if "{" not in path:
        assert (200 in answered) == (mode is GenerationMode.POSITIVE), set(answered)


def test_the_description_names_every_error(server: Running) -> None:
    described = json.loads(server.send("GET", "/openapi.json")[2])
    assert "HTTPValidationError" not in described["components"]["schemas"]
    for path, operations in described["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    [content] = response["content"].values()
                    assert content["schema"]["$ref"].endswith("/ErrorResponse"), path
    asked = described["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(asked["200"]["content"]) == {"application/json", "text/event-stream"}
