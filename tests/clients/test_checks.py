"""The relay changes nothing and hears all, and the checks of answers can fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from tests.clients.answers import CHAT, check_calls, check_streams, check_usage, read_answer
from tests.clients.tee import Exchange, Tee
from tests.serving.conftest import ServerProcess, fake_command, start_process

BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 5,
    "temperature": 0,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "count",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = start_process(fake_command(tmp_path_factory.mktemp("fake"), 0.001))
    yield running
    running.process.kill()
    running.process.communicate()


@pytest.fixture(scope="module")
def heard(fake: ServerProcess) -> list[Exchange]:
    """A whole answer, the same streamed, and a page of metrics, over one connection."""
    streamed = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    with Tee(fake.url) as tee, httpx.Client(base_url=tee.url, timeout=60) as client:
        answers = [client.post(CHAT, json=body) for body in (BODY, streamed)]
        answers.append(client.get("/metrics"))
    exchanges = tee.exchanges()
    assert [one.received for one in exchanges] == [answer.content for answer in answers]
    return exchanges


def test_what_the_relay_hears(heard: list[Exchange]) -> None:
    whole, streamed, metrics = heard
    assert [one.status for one in heard] == [200, 200, 200]
    assert all(one.complete for one in heard)
    assert whole.body == BODY
    assert (whole.streamed, streamed.streamed) == (False, True)
    assert metrics.headers["content-encoding"] == "gzip"
    assert read_answer(streamed) == read_answer(whole)
    assert read_answer(whole).text == whole.answer["choices"][0]["message"]["content"]


def test_wrong_usage_is_noticed(heard: list[Exchange], fake: ServerProcess) -> None:
    for one in heard[:2]:
        check_usage(one, fake.url)
        for name, value in zip(("prompt", "completion"), read_answer(one).usage or (), strict=True):
            told, wrong = (f'"{name}_tokens":{n}'.encode() for n in (value, value + 1))
            assert told in one.received
            with pytest.raises(AssertionError):
                check_usage(replace(one, received=one.received.replace(told, wrong)), fake.url)


def test_a_stream_that_says_something_else_is_noticed(heard: list[Exchange]) -> None:
    whole, streamed, _ = heard
    check_streams([whole, streamed])
    answer = whole.answer
    answer["choices"][0]["message"]["content"] = "something else"
    with pytest.raises(AssertionError):
        check_streams([replace(whole, received=json.dumps(answer).encode()), streamed])


@pytest.mark.parametrize("arguments", ['{"n": 1}', '{"n": "one"}', None])
def test_calls_that_do_not_fit_are_noticed(arguments: str | None) -> None:
    function = {"name": "count", "arguments": arguments}
    message = {"content": None, "tool_calls": [{"id": "1", "function": function}]}
    said = message if arguments else {"content": "no"}
    answer = {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}
    body = {**BODY, "tools": [TOOL], "tool_choice": "required"}
    one = Exchange("POST", CHAT, json.dumps(body).encode(), 200, {}, json.dumps(answer).encode())
    if arguments == '{"n": 1}':
        check_calls(one)
    else:
        with pytest.raises(Exception, match=r"is not of type|no call"):
            check_calls(one)
