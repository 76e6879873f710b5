"""Requests that tests of the server send, and what a refusal looks like."""

from __future__ import annotations

import json
from typing import Any

from tests.serving.conftest import App

USER = [{"role": "user", "content": "hi"}]
COMPLETION = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
CHAT = {"model": "tiny", "messages": USER, "max_tokens": 1}
JSON = {"content-type": "application/json"}


async def post(app: App, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    content = json.dumps(body)  # in ASCII, unlike httpx's own
    answer = await app.client.post(path, content=content, headers=JSON)
    return answer.status_code, answer.json()


def check_refused(answer: tuple[int, dict[str, Any]], param: str, code: str | None = None) -> None:
    status, body = answer
    assert status == 400, body
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert isinstance(error["code"], str)
    if code is not None:
        assert error["code"] == code
