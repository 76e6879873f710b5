"""Bodies, routes and headers around a request: what is no request at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.errors import MAX_MESSAGE_CHARS
from tests.serving.conftest import App
from tests.serving.requests import CHAT, COMPLETION, JSON, check_refused, post


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"a":' + b"[" * 100_000, b"1" * 10_000]
)
async def test_bodies_that_are_no_json_object(app: App, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await app.client.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_missing_content_type_is_named(app: App) -> None:
    answer = await app.client.post("/v1/completions", content=json.dumps(COMPLETION))
    assert answer.status_code == 400
    assert "Content-Type" in answer.json()["error"]["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" * 5000])
@pytest.mark.parametrize(
    "fields",
    [
        '"seed": %s',
        '"temperature": %s',
        '"chat_template_kwargs": {"depth": [%s]}',
        '"tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": %s}}}]',
    ],
    ids=lambda fields: fields[1:12],
)
async def test_numbers_that_are_none(app: App, fields: str, number: str) -> None:
    text = json.dumps(CHAT)[:-1] + f", {fields % number}}}"
    answer = await app.client.post("/v1/chat/completions", content=text, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_json", None)
    assert number[:20] in error["message"]
    assert len(error["message"]) < 100
    assert not app.engine.requests


async def test_integers_of_many_digits_are_still_out_of_range_by_name(app: App) -> None:
    answer = await post(app, "/v1/completions", {**COMPLETION, "seed": 10**4000})
    check_refused(answer, "seed", "invalid_value")


@pytest.mark.parametrize("sent", [b"", b'{"model": '])
async def test_a_client_that_leaves_inside_its_body_counts_as_499(app: App, sent: bytes) -> None:
    messages: list[Any] = [
        {"type": "http.request", "body": sent, "more_body": True},
        {"type": "http.disconnect"},
    ]
    statuses: list[int] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    path = "/v1/completions"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": headers,
        "query_string": b"",
    }
    await app.app(scope, receive, send)
    assert statuses[0] == 499
    told = (await app.client.get("/metrics")).text
    assert f'http_requests_total{{method="POST",route="{path}",status="499"}} 1.0' in told
    assert f'route="{path}",status="400"' not in told


async def test_a_large_bad_body_gets_a_small_answer(app: App) -> None:
    body = {"model": "tiny", "prompt": ["x", *([{"a": "b" * 100}] * 10_000)]}
    answer = await app.client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert len(answer.json()["error"]["message"]) <= MAX_MESSAGE_CHARS
    many = {f"field{i}" * 20: 1 for i in range(1000)}
    answer = await app.client.post("/v1/completions", json={**COMPLETION, **many})
    assert len(answer.content) < 4 * MAX_MESSAGE_CHARS


@pytest.mark.parametrize("size", [5000, 200_000])
async def test_bodies_above_the_limit(app: App, size: int) -> None:
    limit = app.app.state.service.settings.max_body_bytes
    chunk = b"x" * size

    async def undeclared():
        for _ in range(limit // size + 1):
            yield chunk

    headers = {"content-type": "application/json"}
    answer = await app.client.post("/v1/completions", content=undeclared(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models/", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "not_found"),
        ("POST", "/v1/load_mask", 404, "not_found"),
    ],
)
async def test_routes_that_do_not_exist(
    app: App, method: str, path: str, status: int, code: str
) -> None:
    answer = await app.client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/responses/x", "DELETE, GET"),
        ("GET", "/v1/responses/x/cancel", "POST"),
        ("DELETE", "/health", "GET, HEAD"),
        ("GET", "/v1/completions", "POST"),
        ("POST", "/v1/models/tiny", "GET"),
    ],
)
async def test_a_405_names_all_methods_of_the_path(
    app: App, method: str, path: str, allowed: str
) -> None:
    answer = await app.client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-1.2_3", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("a b", False),
        ("http://10.0.0.1/", False),
        ("", False),
    ],
)
async def test_request_ids(app: App, given: str, kept: bool) -> None:
    for path in ("/health", "/nowhere"):
        answer = await app.client.get(path, headers={"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) is kept
        assert answer.headers["x-request-id"]
