"""Events that are put together from parts are those that the published models would be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.event_frame import EventFrame
from serving.schemas.chat import ChatChunk
from serving.schemas.completions import CompletionChoice, CompletionResponse
from tests.serving.conftest import App

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAY = 'SAY "quoted" \\ \x07 été \U0001f600 YAS'


def body_of(path: str) -> dict[str, Any]:
    said = {"messages": [{"role": "user", "content": SAY}]} if path == CHAT else {"prompt": SAY}
    return {"model": "tiny", "stream": True, "max_tokens": 64, **said}


@pytest.mark.parametrize(("path", "model"), [(CHAT, ChatChunk), (COMPLETIONS, CompletionResponse)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"stop": ["quoted"]},
        {"stop_token_ids": [1, 70]},
        {"n": 2},
        {"max_tokens": 3},
    ],
    ids=str,
)
async def test_every_event_is_one_of_the_model(
    app: App, path: str, model: type[ChatChunk | CompletionResponse], options: dict[str, Any]
) -> None:
    answer = await app.client.post(path, json=body_of(path) | options)
    *events, done = answer.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    assert len(events) >= 3
    for event in events:
        data = event.removeprefix("data: ")
        assert model.model_validate_json(data).model_dump_json(exclude_unset=True) == data


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_has_the_fields_and_text_of_one_with_log_probs(app: App, path: str) -> None:
    """The latter is made of models alone."""
    shown = {"logprobs": True} if path == CHAT else {"logprobs": 0}
    plain, full = [
        [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
        for answer in [
            await app.client.post(path, json=body_of(path) | more) for more in ({}, shown)
        ]
    ]
    varying = {"id": "", "created": 0}
    for one, other in zip(plain, full, strict=True):
        for choice in other["choices"]:
            choice["logprobs"] = None
        assert one | varying == other | varying


def test_a_frame_is_made_of_an_event_without_choices() -> None:
    choice = CompletionChoice(index=0, text="")
    event = CompletionResponse(
        id="1", created=1, model="m", choices=[choice], system_fingerprint="f"
    )
    with pytest.raises(ValueError, match="without choices"):
        EventFrame(event)


async def test_no_thread_stands_between_a_request_and_its_route(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy engine leaves little time to other threads, and a first token would wait for them."""

    async def in_thread(*_: object, **__: object) -> None:
        raise AssertionError("a dependency is called in another thread")

    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", in_thread)
    answer = await app.client.post(COMPLETIONS, json={"prompt": [1, 2], "max_tokens": 1})
    assert answer.status_code == 200
