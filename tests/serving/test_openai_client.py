"""OpenAI's own client against a real server process."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.serving.conftest import ServerProcess
from tests.serving.fake_engine import CONTEXT

USER = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(server: ServerProcess):
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120) as client:
        yield client


def test_models_list_base_and_masks(client: OpenAI) -> None:
    cards = {model.id: model for model in client.models.list()}
    assert set(cards) == {"tiny", "tiny:general", "tiny:french"}
    french = client.models.retrieve("tiny:french")
    Model.model_validate(french.model_dump(), strict=True)
    assert french.model_extra["parent"] == "tiny"
    assert french.model_extra["root"] == "tiny"
    assert len(french.model_extra["mask"]["digest"]) == 64


def test_completion_is_exactly_the_sdk_type(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=5, logprobs=2)
    Completion.model_validate(answer.model_dump(), strict=True)
    [choice] = answer.choices
    assert len(choice.text) == 5
    assert choice.finish_reason == "length"
    assert choice.logprobs.tokens == list(choice.text)
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4]
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 5
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer._request_id


def test_chat_is_exactly_the_sdk_type(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=USER, max_completion_tokens=4, logprobs=True, top_logprobs=3
    )
    ChatCompletion.model_validate(answer.model_dump(), strict=True)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert len(choice.message.content) == 4
    [first, *_] = choice.logprobs.content
    assert bytes(first.bytes).decode() == first.token == choice.message.content[0]
    assert len(first.top_logprobs) == 3


def test_default_lengths(client: OpenAI) -> None:
    assert client.completions.create(model="tiny", prompt="a").usage.completion_tokens == 16
    answer = client.chat.completions.create(model="tiny", messages=USER)
    assert answer.usage.total_tokens == CONTEXT


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("hello", 1), (["hello", "you"], 2), ([9, 10, 11], 1), ([[9, 10], [11]], 2)],
)
def test_every_form_of_prompt(client: OpenAI, prompt, count: int) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt, n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == list(range(2 * count))
    texts = {choice.text for choice in answer.choices}
    assert len(texts) == 2 * count, "choices and prompts must not be mixed up"


def test_a_prompt_in_a_list_gets_what_it_gets_alone(client: OpenAI) -> None:
    alone = [
        client.completions.create(model="tiny", prompt=p, max_tokens=6).choices[0].text
        for p in ("one", "two", "three")
    ]
    together = client.completions.create(model="tiny", prompt=["one", "two", "three"], max_tokens=6)
    assert [choice.text for choice in together.choices] == alone


def test_echo_puts_the_prompt_and_its_logprobs_first(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="hey", max_tokens=2, echo=True, logprobs=1
    )
    [choice] = answer.choices
    assert choice.text.startswith("hey")
    assert choice.logprobs.tokens == list(choice.text)
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1] is not None


def test_scoring_alone_generates_nothing(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="hey", max_tokens=0, echo=True, logprobs=1
    )
    assert answer.choices[0].text == "hey"
    assert len(answer.choices[0].logprobs.tokens) == 3
    assert answer.usage.completion_tokens == 0


def test_vllm_extensions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny",
        prompt="hey",
        max_tokens=4,
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "min_tokens": 2,
            "stop_token_ids": [0],
            "prompt_logprobs": 2,
            "cache_salt": "me",
            "structured_outputs": {"regex": "[a-z ]+"},
        },
    )
    [first, second, _] = answer.choices[0].model_extra["prompt_logprobs"]
    assert first is None
    assert sorted(entry["rank"] for entry in second.values()) == [1, 2]


def test_the_mask_is_chosen_per_request(client: OpenAI) -> None:
    def ask(model: str, **extra: object) -> Completion:
        return client.completions.create(
            model=model, prompt="hello", max_tokens=8, extra_body=extra or None
        )

    base, general, french = ask("tiny"), ask("tiny:general"), ask("tiny:french")
    assert base.choices[0].text == general.choices[0].text != french.choices[0].text
    assert ask("tiny", mask="french").choices[0].text == french.choices[0].text
    assert base.system_fingerprint == general.system_fingerprint != french.system_fingerprint
    assert french.model == "tiny:french"


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="hello", max_tokens=9, n=2, seed=3)
    texts = ["", ""]
    reasons: list[str | None] = [None, None]
    for chunk in client.completions.create(
        model="tiny", prompt="hello", max_tokens=9, n=2, seed=3, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == ["length", "length"]


def test_a_chat_stream_with_usage(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=USER, max_tokens=6)
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=USER,
            max_tokens=6,
            stream=True,
            logprobs=True,
            stream_options={"include_usage": True},
        )
    )
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
    *normal, last = chunks
    assert normal[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in normal)
    assert last.choices == []
    assert last.usage == whole.usage
    text = "".join(chunk.choices[0].delta.content or "" for chunk in normal)
    assert text == whole.choices[0].message.content
    tokens = [t for c in normal for t in (c.choices[0].logprobs or c).__dict__.get("content", [])]
    assert "".join(token.token for token in tokens) == text
    assert normal[-1].choices[0].finish_reason == "length"


def test_running_usage(client: OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.completions.create(
        model="tiny", prompt="hello", max_tokens=4, stream=True, stream_options=options
    )
    assert [chunk.usage.completion_tokens for chunk in stream] == [1, 2, 3, 4, 4]


def test_stop_strings(client: OpenAI) -> None:
    text = client.completions.create(model="tiny", prompt="hello", max_tokens=30).choices[0].text
    stop = text[10:13]
    cut = client.completions.create(model="tiny", prompt="hello", max_tokens=30, stop=[stop])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].model_extra["stop_reason"] == stop


def test_a_failure_after_the_first_token_is_an_error_chunk(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "FAIL"}], stream=True
    )
    role, *tokens = [next(stream) for _ in range(4)]
    assert role.choices[0].delta.role == "assistant"
    assert all(len(chunk.choices[0].delta.content) == 1 for chunk in tokens)
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.code == "internal_error"
    assert "secret" not in str(caught.value)
    with pytest.raises(openai.InternalServerError) as whole:
        client.completions.create(model="tiny", prompt="FAIL")
    assert whole.value.code == "internal_error"


@pytest.mark.parametrize(
    ("prompt", "error", "code", "param"),
    [
        ("REFUSE", openai.BadRequestError, "invalid_value", "response_format"),
        ("OVERLOAD", openai.RateLimitError, "overloaded", None),
        ("DEAD", openai.InternalServerError, "engine_dead", None),
        ("CRASH", openai.InternalServerError, "internal_error", None),
        ("LOST", openai.InternalServerError, "mask_unavailable", "model"),
        ("x" * CONTEXT, openai.BadRequestError, "context_length_exceeded", "prompt"),
        ("x" * 100_000, openai.BadRequestError, "context_length_exceeded", "prompt"),
        ("x" * 10_000_000, openai.APIStatusError, "request_too_large", None),
        ("", openai.BadRequestError, "invalid_value", "prompt"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_token_raise_the_sdk_classes(
    client: OpenAI, prompt: str, error: type, code: str, param: str | None, stream: bool
) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(model="tiny", prompt=prompt, stream=stream)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id
    assert "secret" not in str(caught.value)
    if error is openai.RateLimitError:
        assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("model", ["nobody", "tiny:", "tiny:nobody", "Tiny", "", "tiny:general:x"])
def test_unknown_models(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model=model, prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model or "nobody")
