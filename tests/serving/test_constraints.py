"""Structured output is compiled before a request is admitted, and holds up nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engines.decoding.structured_output import ConstraintCompiler
from serving import constraints
from tests.serving.conftest import App

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
REGEX = {"structured_outputs": {"regex": "[0-9]{3}"}}


def schema(value: Any, field: str = "response_format") -> dict[str, Any]:
    if field == "structured_outputs":
        return {field: {"json": value}}
    return {field: {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


async def ask(app: App, constraint: dict[str, Any]) -> httpx.Response:
    return await app.client.post("/v1/chat/completions", json={**CHAT, **constraint})


@pytest.mark.parametrize("field", ["response_format", "structured_outputs"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"type": "string", "format": "int32"}, "Unknown format: int32"),
        ({"$ref": "#"}, "NoExtensionBias"),
        ({"multipleOf": 999_983}, "needs 999983 remainders"),
        ({"enum": ["x" * 70_000]}, "70014 characters, at most 65536"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_refused_constraint_names_its_field(
    app: App, field: str, value: Any, message: str
) -> None:
    answer = await ask(app, schema(value, field))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: ")
    assert message in error["message"]
    assert not app.engine.requests


async def test_keywords_that_say_nothing_are_served(app: App) -> None:
    value = {"type": "array", "items": {"type": "integer"}, "uniqueItems": False}
    assert (await ask(app, schema(value))).status_code == 200


async def test_an_engine_without_structured_output(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.app.state.service.constraints, "_compiler", None)
    answer = await ask(app, REGEX)
    assert answer.status_code == 400
    assert "takes no structured output" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_constraint_that_grows_too_heavy_is_a_bad_request(app: App, stream: bool) -> None:
    body = {"model": "tiny", "prompt": "INVALID", "max_tokens": 9, "stream": stream}
    answer = await app.client.post("/v1/completions", json=body)
    assert "cannot go on" in answer.text
    if not stream:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_value"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Compiling waits for this event; the threads that compile are those of the server's own."""
    go_on = threading.Event()
    compile_now = ConstraintCompiler.compile

    def wait(self: ConstraintCompiler, spec: Any) -> Any:
        assert threading.current_thread().name.startswith("constraints")
        go_on.wait(60)
        return compile_now(self, spec)

    monkeypatch.setattr(ConstraintCompiler, "compile", wait)
    yield go_on
    go_on.set()


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def test_compiling_holds_up_no_other_request(app: App, held: threading.Event) -> None:
    waiting = asyncio.create_task(ask(app, REGEX))
    await until(lambda: app.app.state.service.constraints._waiting)
    assert (await ask(app, {})).status_code == 200
    assert app.app.state.admission.in_flight == 0, "it takes no slot before it is checked"
    held.set()
    assert (await waiting).status_code == 200


async def test_what_takes_too_long_is_refused(
    app: App, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraints, "MAX_SECONDS", 0.05)
    answer = await ask(app, REGEX)
    assert answer.status_code == 400
    assert "takes more than 0.05 s; simplify it" in answer.json()["error"]["message"]
    # The thread is busy still: that is not the next one's fault.
    answer = await ask(app, REGEX)
    assert answer.status_code == 429
    assert answer.headers["retry-after"]
    monkeypatch.setattr(constraints, "MAX_SECONDS", 60.0)
    held.set()
    assert (await ask(app, REGEX)).status_code == 200


async def test_so_many_may_wait(
    app: App, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraints, "MAX_WAITING", 3)
    waiting = [asyncio.create_task(ask(app, REGEX)) for _ in range(3)]
    await until(lambda: app.app.state.service.constraints._waiting == 3)
    assert (await ask(app, REGEX)).status_code == 429
    held.set()
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * 3
