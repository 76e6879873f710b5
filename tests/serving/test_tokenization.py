"""Texts to tokens and back, off the event loop where they are long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engines.chat_template.template import ChatTemplate
from tests.serving.conftest import App, open_app
from tests.serving.fake_engine import CHAT_TEMPLATE, FakeEngine
from tests.serving.requests import CHAT, COMPLETION, USER, check_refused, post


async def test_tokenize_and_back(app: App) -> None:
    status, answer = await post(app, "/tokenize", {"prompt": "hé", "return_token_strs": True})
    assert status == 200
    assert answer["count"] == len(answer["tokens"]) == 3
    assert answer["max_model_len"] == 256
    assert answer["token_strs"] == ["h", "\u00c3", "\u00a9"], "as the vocabulary spells them"
    status, back = await post(app, "/detokenize", {"tokens": answer["tokens"]})
    assert back == {"prompt": "hé"}
    status, chat = await post(app, "/tokenize", {"model": "tiny:french", "messages": USER})
    assert status == 200
    assert chat["count"] == len("<|user|>hi\n<|assistant|>")
    assert chat["token_strs"] is None


TALK = [*USER, {"role": "assistant", "content": "so "}]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "<|user|>hi\n<|assistant|>so \n<|assistant|>"),
        ({"add_generation_prompt": False}, "<|user|>hi\n<|assistant|>so \n"),
        ({"continue_final_message": True}, "<|user|>hi\n<|assistant|>so "),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            "<|user|>hi\n<|assistant|>so ",
        ),
        (
            {"chat_template_kwargs": {"mood": "calm"}},
            "calm<|user|>hi\n<|assistant|>so \n<|assistant|>",
        ),
    ],
)
async def test_conversations_are_tokenized_as_they_are_answered(
    tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    template = CHAT_TEMPLATE.removesuffix("<|assistant|>")
    template = "{{ mood }}" + template + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    async with open_app(tmp_path, FakeEngine(tmp_path, template=template)) as app:
        _, counted = await post(app, "/tokenize", {"messages": TALK, **options})
        _, back = await post(app, "/detokenize", {"tokens": counted["tokens"]})
        assert back["prompt"] == text
        _, answer = await post(app, "/v1/chat/completions", {**CHAT, "messages": TALK, **options})
        assert list(app.engine.requests[-1].prompt_token_ids) == counted["tokens"]
        assert answer["usage"]["prompt_tokens"] == counted["count"]


async def test_what_the_tokenizer_is(app: App) -> None:
    answer = await app.client.get("/tokenizer_info")
    assert answer.json() == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|end|>",
        "pad_token": None,
        "chat_template": CHAT_TEMPLATE,
    }


async def test_where_the_tokenizer_lay_is_not_told(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path)
    engine.codec.config["name_or_path"] = "/home/me/model"
    engine.codec.config["model_max_length"] = 8192
    async with open_app(tmp_path, engine) as app:
        answer = (await app.client.get("/tokenizer_info")).json()
    assert "name_or_path" not in answer
    assert answer["model_max_length"] == 8192


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"messages": USER, "chat_template": "x"}, "chat_template"),
        (
            "/tokenize",
            {"messages": USER, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        (
            "/tokenize",
            {"messages": USER, "chat_template_kwargs": {"messages": []}},
            "chat_template_kwargs",
        ),
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

    def recording(messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        threads.append(threading.current_thread().name)
        return render(messages, **options)

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
