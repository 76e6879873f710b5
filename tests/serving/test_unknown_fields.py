"""Fields that no schema knows: refused by default, logged and left out on request."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serving.unknown_fields import MAX_LOGGED_NAMES, UnknownFieldLog, without_unknown
from tests.serving.conftest import App, open_app
from tests.serving.requests import CHAT, COMPLETION, USER, check_refused, post

TOOL = {"type": "function", "function": {"name": "f", "made_up": 1}}


@pytest.fixture
async def lenient(tmp_path: Path) -> AsyncIterator[App]:
    async with open_app(tmp_path, unknown_fields="ignore") as opened:
        yield opened


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {**COMPLETION, "made_up": 1}),
        ("/v1/chat/completions", {**CHAT, "made_up": {"a": [1]}}),
        ("/v1/chat/completions", {**CHAT, "messages": [{**USER[0], "made_up": 1}]}),
        ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "none"}),
        ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"made_up": 1}}),
        ("/v1/responses", {"input": [{**USER[0], "made_up": 1}], "max_output_tokens": 1}),
        (
            "/v1/responses",
            {
                "input": [{"type": "message", "role": "user", "content": "x", "made_up": 1}],
                "max_output_tokens": 1,
            },
        ),
        ("/tokenize", {"prompt": "a", "made_up": 1}),
    ],
)
async def test_unknown_fields(
    app: App,
    lenient: App,
    path: str,
    body: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    status, answer = await post(app, path, body)
    assert status == 400
    assert answer["error"]["code"] == "unknown_parameter", answer
    assert answer["error"]["param"].endswith("made_up")
    with caplog.at_level(logging.WARNING, "serving"):
        for _ in range(2):
            answer = await lenient.client.post(path, json=body)
            assert answer.status_code == 200, answer.text
    said = [record.message for record in caplog.records]
    assert said == [f"ignoring the unknown field 'made_up' of requests to {path}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suffix", "end"),
        ("chat_template", "{{ 1 }}"),
        ("prompt_cache_options", {"mode": "implicit"}),
        ("temperature", -1),
        ("n", "2"),
    ],
)
async def test_what_changes_answers_is_refused_all_the_same(
    lenient: App, name: str, value: Any
) -> None:
    check_refused(await post(lenient, "/v1/completions", {**COMPLETION, name: value}), name)


async def test_a_request_that_is_refused_says_why(lenient: App) -> None:
    body = {**COMPLETION, "made_up": 1, "temperature": "hot"}
    check_refused(await post(lenient, "/v1/completions", body), "temperature")


def test_no_more_than_so_many_names_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    log = UnknownFieldLog()
    with caplog.at_level(logging.WARNING, "serving"):
        for number in range(MAX_LOGGED_NAMES + 50):
            with log.leaving_out("/x"):
                assert without_unknown({f"field{number:04}" * 20: 1, "a": 2}, {"a"}) == {"a": 2}
    assert len(caplog.records) == MAX_LOGGED_NAMES + 1
    assert max(len(record.message) for record in caplog.records) < 200
    assert without_unknown({"b": 1}, {"a"}) == {"b": 1}, "outside of a request"
