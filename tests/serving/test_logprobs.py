"""Log-probs in answers: how many, computed where, and the offsets beside them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from serving.api import completions
from tests.serving.conftest import App, open_app
from tests.serving.requests import CHAT, COMPLETION, USER, check_refused, post

SCORE = {"max_tokens": 0, "echo": True}


@pytest.mark.parametrize(
    ("path", "body", "entries", "param"),
    [
        # Prompt tokens times (alternatives + 1) times choices.
        ("/v1/completions", {"prompt": [5] * 100, "prompt_logprobs": 4, "n": 2}, 1000, None),
        ("/v1/completions", {"prompt": [[5] * 50] * 2, "logprobs": 9, **SCORE}, 1000, None),
        ("/v1/completions", {"prompt": [5] * 100, "prompt_logprobs": 10}, 1100, "prompt_logprobs"),
        ("/v1/completions", {"prompt": [[5] * 51] * 2, "logprobs": 9, **SCORE}, 1020, "logprobs"),
        # Tokens of the answers likewise, but not those of a stream.
        ("/v1/completions", {"prompt": "a", "logprobs": 4, "max_tokens": 200}, 1000, None),
        ("/v1/completions", {"prompt": "a", "logprobs": 4, "max_tokens": 201}, 1005, "logprobs"),
        (
            "/v1/completions",
            {"prompt": "a", "logprobs": 4, "max_tokens": 201, "stream": True},
            0,
            None,
        ),
        (
            "/v1/chat/completions",
            {"logprobs": True, "top_logprobs": 9, "n": 2, "max_tokens": 51},
            1020,
            "logprobs",
        ),
        ("/v1/completions", {"prompt": "a", "n": 100, "max_tokens": 250}, 0, None),
    ],
)
async def test_log_probs_of_a_request_are_limited(
    tmp_path: Path, path: str, body: dict[str, Any], entries: int, param: str | None
) -> None:
    async with open_app(tmp_path, max_logprob_entries=1000) as app:
        base = COMPLETION if path == "/v1/completions" else CHAT
        answer = await app.client.post(path, json={**base, **body})
        if param is None:
            assert answer.status_code == 200, answer.text
            return
        check_refused((answer.status_code, answer.json()), param)
        message = answer.json()["error"]["message"]
        assert f"{entries} log-probs, above this server's limit of 1000 (max_logprob" in message
        assert not app.engine.requests


async def test_an_answer_of_open_length_ends_at_the_limit_of_log_probs(tmp_path: Path) -> None:
    async with open_app(tmp_path, max_logprob_entries=1000) as app:
        body = {"model": "tiny", "messages": USER, "logprobs": True, "top_logprobs": 9}
        status, answer = await post(app, "/v1/chat/completions", body)
        assert (status, answer["usage"]["completion_tokens"]) == (200, 100)
        assert answer["choices"][0]["finish_reason"] == "length"
        status, answer = await post(app, "/v1/chat/completions", {**body, "top_logprobs": 2})
        assert answer["usage"]["completion_tokens"] > 200, "the context ends it"


@pytest.mark.parametrize("stream", [True, False])
async def test_many_log_probs_are_written_off_the_event_loop(
    app: App, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    threads: dict[int, threading.Thread] = {}
    write = completions.completion_logprobs

    def recording(tokens: Any, entries: Any, *rest: Any) -> Any:
        threads[len(entries)] = threading.current_thread()
        return write(tokens, entries, *rest)

    monkeypatch.setattr(completions, "completion_logprobs", recording)
    monkeypatch.setattr("serving.streaming.INLINE_ROWS", 100)
    monkeypatch.setattr("serving.api.answers.INLINE_ROWS", 100)
    for size in (10, 200):
        body = {**COMPLETION, "prompt": [5] * size, "logprobs": 1, **SCORE, "stream": stream}
        answer = await app.client.post("/v1/completions", json=body)
        assert answer.status_code == 200
    assert threads[10] is threading.current_thread()
    assert threads[200] is not threading.current_thread()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("prompt", "starts"),
    [
        ("aé🌶b", [0, 1, 1, 2, 2, 2, 2, 3]),
        ("a<|end|>b", [0, 1, 8]),
    ],
)
@pytest.mark.parametrize("as_ids", [True, False])
async def test_offsets_count_the_text_that_was_sent(
    app: App, prompt: str, starts: list[int], as_ids: bool, stream: bool
) -> None:
    ids = app.engine.codec.encode(prompt)
    body = {**COMPLETION, "prompt": ids if as_ids else prompt, "max_tokens": 3, "stream": stream}
    for echo in (True, False):
        text, tokens, offsets = await completed(app, {**body, "echo": echo, "logprobs": 0})
        assert offsets == [*(starts if echo else []), *range(len(text) - 3, len(text))]
        assert text[: len(text) - 3] == (prompt if echo else "")
        assert len(tokens) == len(offsets)


async def test_offsets_do_not_go_beyond_a_stop_string(app: App) -> None:
    _, whole = await post(app, "/v1/completions", {**COMPLETION, "max_tokens": 5})
    stop = whole["choices"][0]["text"][2:5]
    body = {**COMPLETION, "max_tokens": 5, "stop": stop, "logprobs": 0}
    _, answer = await post(app, "/v1/completions", body)
    choice = answer["choices"][0]
    offsets = choice["logprobs"]["text_offset"]
    assert offsets == [min(i, len(choice["text"])) for i in range(len(offsets))]


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize(
    ("said", "stop", "text", "starts"),
    [
        ("aé漢b", "é漢", "a", [0, 1, 1, 1, 1, 1]),
        # What is held back for a stop string that does not come is text in the end.
        ("aé漢b", "é漢x", "aé漢b", [0, 1, 1, 2, 2, 2, 3]),
        ("aé漢b", "漢b", "aé", [0, 1, 1, 2, 2, 2, 2]),
        ("abcd", ["bcx", "d"], "abc", [0, 1, 2, 3]),
        ("ab", "bc", "ab", [0, 1]),
    ],
)
async def test_streamed_offsets_are_those_of_the_whole_answer(
    app: App, said: str, stop: Any, text: str, starts: list[int], echo: bool
) -> None:
    prompt = f"SAY {said} YAS"
    before = len(prompt) if echo else 0
    body = {"prompt": prompt, "max_tokens": 99, "stop": stop, "logprobs": 1, "echo": echo}
    found = [await completed(app, {**body, "stream": stream}) for stream in (True, False)]
    assert found[0] == found[1]
    shown, tokens, offsets = found[0]
    assert shown[before:] == text
    assert offsets[-len(starts) :] == [before + start for start in starts]
    assert len(tokens) == len(offsets) == len(starts) + (len(prompt.encode()) if echo else 0)


async def completed(app: App, body: dict[str, Any]) -> tuple[str, list[str], list[int]]:
    """Text, tokens and offsets of the only choice, streamed or not."""
    if not body["stream"]:
        _, answer = await post(app, "/v1/completions", body)
        events = [answer]
    else:
        answer = await app.client.post("/v1/completions", json=body)
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        events = [json.loads(line) for line in lines if line != "[DONE]"]
    choices = [event["choices"][0] for event in events]
    shown = [choice["logprobs"] for choice in choices]
    return (
        "".join(choice["text"] for choice in choices),
        [token for logprobs in shown for token in logprobs["tokens"]],
        [offset for logprobs in shown for offset in logprobs["text_offset"]],
    )
