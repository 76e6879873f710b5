"""Texts to tokens and back, off the event loop where they are long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engines.chat_template.template import ChatTemplate
from tests.serving.conftest import App
from tests.serving.requests import CHAT, COMPLETION, USER, check_refused, post


async def test_tokenize_and_back(app: App) -> None:
    status, answer = await post(app, "/tokenize", {"prompt": "hé", "return_token_strs": True})
    assert status == 200
    assert answer["count"] == len(answer["tokens"]) == 3
    assert answer["max_model_len"] == 256
    assert answer["token_strs"] == ["h", "\ufffd", "\ufffd"]
    status, back = await post(app, "/detokenize", {"tokens": answer["tokens"]})
    assert back == {"prompt": "hé"}
    status, chat = await post(app, "/tokenize", {"model": "tiny:french", "messages": USER})
    assert status == 200
    assert chat["count"] == len("<|user|>hi\n<|assistant|>")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
        ("/detokenize", {"tokens": [257]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
async def test_bad_token_requests(app: App, path: str, body: Any, param: str) -> None:
    check_refused(await post(app, path, body), param)


async def test_texts_of_any_length_are_tokenized(app: App) -> None:
    text = "the lamp\n" * 5000  # no prompt of the context of 256 tokens is as long
    status, answer = await post(app, "/tokenize", {"prompt": text})
    assert status == 200, answer
    assert answer["tokens"] == app.engine.codec.encode(text)
    status, back = await post(app, "/detokenize", {"tokens": answer["tokens"]})
    assert back == {"prompt": text}
    status, _ = await post(app, "/v1/completions", {**COMPLETION, "prompt": text})
    assert status == 400


async def test_no_prompt_waits_for_long_texts(app: App) -> None:
    prompts = app.app.state.service.prompts
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait(60)

    holding = asyncio.create_task(prompts.apart(hold, 1 << 20))
    await asyncio.to_thread(held.wait, 60)
    text = "x" * 5000  # longer than what is done on the event loop
    assert len(await prompts.encode(text, add_special_tokens=False)) == len(text)
    go_on.set()
    await holding


async def test_long_texts_are_tokenized_off_the_event_loop(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[int, str] = {}
    encode = app.engine.codec.encode

    def recording(text: str, **options: bool) -> list[int]:
        threads[len(text)] = threading.current_thread().name
        return encode(text, **options)

    monkeypatch.setattr(app.engine.codec, "encode", recording)
    for size in (10, 5000):
        await app.client.post("/tokenize", json={"prompt": "x" * size})
    assert threads[10] == threading.current_thread().name
    assert threads[5000].startswith("tokenizer")


async def test_chat_templates_are_rendered_off_the_event_loop(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    render = app.engine.codec.render_chat

    def recording(messages: Sequence[Mapping[str, Any]], tools: None) -> str:
        threads.append(threading.current_thread().name)
        return render(messages)

    monkeypatch.setattr(app.engine.codec, "render_chat", recording)
    status, _ = await post(app, "/v1/chat/completions", CHAT)
    assert status == 200
    assert threads[0].startswith("chat-template")


async def test_a_template_that_does_too_much_is_a_400_that_names_the_limit(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(app.engine.codec, "_template", ChatTemplate(endless, Path("t"), {}))
    status, answer = await post(app, "/v1/chat/completions", CHAT)
    assert (status, answer["error"]["param"]) == (400, "messages")
    assert "2000000 steps" in answer["error"]["message"]
