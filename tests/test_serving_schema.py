"""The OpenAPI description holds: what it allows finds no server error, and what comes fits it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
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


@pytest.fixture(scope="module")
def description(server: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")


schema = schemathesis.pytest.from_fixture("description")


@schema.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_requests_of_all_kinds(case: schemathesis.Case) -> None:
    """Valid and invalid ones; a valid one may ask for more than there is, or for another model."""
    response = case.call(timeout=20)
    assert response.status_code < 500
    case.validate_response(response, excluded_checks=[positive_data_acceptance])


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
