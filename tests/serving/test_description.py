"""The app against its own OpenAPI description, with generated requests."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from serving.api.health import PATHS
from serving.app import create_app
from serving.config import ServerSettings
from tests.serving.conftest import App, open_app
from tests.serving.fake_engine import FakeEngine

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
]
OPERATIONS = [
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("POST", "/v1/load_mask"),
    ("POST", "/v1/unload_mask"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/health"),
    ("GET", "/livez"),
    ("GET", "/ping"),
    ("GET", "/readyz"),
]


MASK_FILE = "late.safetensors"
ADMIN = ("/v1/load_mask", "/v1/unload_mask")
# No generator guesses which masks there are.
VALID = {
    "/v1/load_mask": {"mask_path": MASK_FILE},
    "/v1/unload_mask": {"mask_name": "french"},
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory):
    directory: Path = tmp_path_factory.mktemp("fake")
    (directory / MASK_FILE).write_text("mask")
    # All optional routes, under one key that opens the API's, and another for masks.
    settings = ServerSettings(
        directory=directory, api_key=("api",), admin_api_key=("admin",), mask_root=directory
    )
    app = create_app(settings, FakeEngine(directory))
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=key("/openapi.json"))


def key(path: str) -> dict[str, str]:
    """The key that opens a route."""
    return {"authorization": f"Bearer {'admin' if path in ADMIN else 'api'}"}


def test_every_operation_is_tried(schema) -> None:
    found = {(o.ok().method.upper(), o.ok().path) for o in schema.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        (method, path, mode)
        for method, path in OPERATIONS
        for mode in GenerationMode
        # A GET has nothing to get wrong.
        if method == "POST" or mode is GenerationMode.POSITIVE
    ],
)
def test_generated_requests(schema, method: str, path: str, mode: GenerationMode) -> None:
    operation = schema[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=20 if method == "POST" else 3,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and path.startswith("/v1/") and method == "POST":
            # No generator guesses the name; the rest of a valid request is to be reached.
            case.body.update(VALID[path] if path in ADMIN else {"model": "tiny", "mask": None})
        answer = case.call(headers=key(path))
        case.validate_response(answer, checks=CHECKS)
        assert answer.headers["x-request-id"]

    run()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_route_takes_another_key(schema, method: str, path: str) -> None:
    """Beyond the probes every route needs one of its own, whatever is sent."""
    other = {"authorization": f"Bearer {'api' if path in ADMIN else 'admin'}"}
    case = schema[path][method].Case(path_parameters={"model": "tiny"})
    for headers in ({}, other):
        answer = case.call(headers=headers)
        assert answer.status_code == (200 if path in PATHS else 401), answer.text


async def test_the_description_says_what_needs_a_key(tmp_path: Path) -> None:
    async with open_app(tmp_path, api_key=("one",)) as app:
        headers = {"authorization": "Bearer one"}
        description = (await app.client.get("/openapi.json", headers=headers)).json()
    assert description["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in description["paths"].items():
        for operation in operations.values():
            assert operation.get("security") == (None if path in PATHS else [{"key": []}])


async def test_the_description_names_every_status_and_limit(app: App) -> None:
    description = (await app.client.get("/openapi.json")).json()
    for path, operations in description["paths"].items():
        for operation in operations.values():
            assert "503" in operation["responses"], path
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):
        answers = description["paths"][path]["post"]["responses"]["200"]["content"]
        assert answers.keys() == {"application/json", "text/event-stream"}
    n = description["components"]["schemas"]["CompletionRequest"]["properties"]["n"]
    assert n["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 128}
    assert description["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False
