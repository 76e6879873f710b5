"""Settings from a file, logs as JSON, and traces."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.config import ServerSettings
from serving.log_format import JsonLines
from tests.serving.conftest import StartFake, open_app
from tests.serving.requests import CHAT, COMPLETION, post


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_comes_after_the_environment_and_that_after_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        tmp_path / "serve.toml",
        'max_waiting = 200\nmax_choices = 7\nlog_level = "debug"\napi_key = ["a", "b"]\n'
        "[engine_options]\nthreads = 3\n",
    )
    monkeypatch.setenv("SERVING_CONFIG", str(file))
    monkeypatch.setenv("SERVING_MAX_WAITING", "300")
    settings = ServerSettings(directory=tmp_path, log_level="error")
    assert (settings.max_choices, settings.max_waiting, settings.log_level) == (7, 300, "error")
    assert settings.engine_options == {"threads": 3}
    assert [key.get_secret_value() for key in settings.api_key] == ["a", "b"]
    other = write(tmp_path / "other.toml", "max_choices = 8\n")
    assert ServerSettings(directory=tmp_path, config=other).max_choices == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_wating = 3\n", "max_wating"),
        ("max_waiting = 0\n", "greater than or equal to 1"),
        ("max_waiting = \n", "cannot be read"),
        ('config = "x"\n', "names another config"),
        ('api_key = [""]\n', "empty"),
        ("max_choices = 1000\n", "never be admitted"),
        ("port = true\n", "must not be true or false"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "serve.toml", text)
    with pytest.raises(ValueError, match=message):
        ServerSettings(directory=tmp_path, config=file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        ServerSettings(directory=tmp_path, config=tmp_path / "nowhere")


def test_traces_need_an_endpoint_that_is_one(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="otlp_endpoint"):
        ServerSettings(directory=tmp_path, otlp_endpoint="collector:4318")


def test_a_line_of_the_log_is_an_object() -> None:
    record = logging.LogRecord("serving", logging.WARNING, "f", 1, "two\nlines %s", ("é",), None)
    line = JsonLines().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == "two\nlines é"
    assert (found["level"], found["logger"]) == ("warning", "serving")
    assert found["time"].endswith("+00:00")
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        record.exc_info = (RuntimeError, error, error.__traceback__)
    assert "broken" in json.loads(JsonLines().format(record))["exception"]


def test_a_server_logs_json_alone(start_fake: StartFake) -> None:
    server = start_fake(log_format="json", access_log=True)
    assert server.stop() == 0
    lines = [line for text in server.log for line in text.splitlines()]
    messages = [json.loads(line)["message"] for line in lines]
    assert any(message.startswith("serving tiny") for message in messages)
    assert any(message.startswith("stopping") for message in messages)


@pytest.fixture
def spans() -> tuple[Any, list[Any]]:
    """A tracing that keeps what it would send, and what it kept."""
    pytest.importorskip("opentelemetry.sdk")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from serving.tracing import Tracing

    kept: list[Any] = []

    class Keep(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            kept.extend(spans)
            return SpanExportResult.SUCCESS

    return Tracing("http://127.0.0.1:1/v1/traces", Keep()), kept


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_under_its_clients(
    tmp_path: Path, spans: tuple[Any, list[Any]], stream: bool
) -> None:
    tracing, kept = spans
    body = {**CHAT, "max_tokens": 5, "model": "tiny:french", "stream": stream}
    async with open_app(tmp_path, tracing=tracing) as app:
        answer = await app.client.post(
            "/v1/chat/completions", json=body, headers={"traceparent": PARENT}
        )
        assert answer.status_code == 200
        await app.client.get("/metrics")
        await app.client.get("/livez")
        await post(app, "/v1/completions", {**COMPLETION, "n": 0})
    chat, refused = kept
    assert chat.name == "POST /v1/chat/completions"
    assert f"{chat.context.trace_id:032x}" == PARENT.split("-")[1]
    assert chat.attributes["http.response.status_code"] == 200
    assert chat.attributes["gen_ai.request.model"] == "tiny:french"
    assert chat.attributes["gen_ai.usage.output_tokens"] == 5
    assert chat.attributes["gen_ai.usage.input_tokens"] > 5
    assert chat.attributes["gen_ai.response.time_to_first_chunk"] >= 0
    assert "hi" not in [str(value) for value in chat.attributes.values()]
    assert refused.attributes["http.response.status_code"] == 400
    assert "gen_ai.usage.input_tokens" not in refused.attributes


async def test_without_an_endpoint_nothing_is_traced(tmp_path: Path) -> None:
    async with open_app(tmp_path) as app:
        kinds = [layer.cls for layer in app.app.user_middleware]
    assert not any("Telemetry" in str(kind) or "around" in str(kind) for kind in kinds)
