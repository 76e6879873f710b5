"""What a request may say: everything else is refused by name, and nothing is ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import App, open_app
from tests.serving.requests import CHAT, COMPLETION, USER, check_refused, post

BAD_FIELDS: list[tuple[str, Any]] = [
    ("mask", ""),
    ("n", 0),
    ("n", 129),
    ("n", True),
    ("n", 1.5),
    ("temperature", -0.1),
    ("temperature", 101),
    ("temperature", "1"),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_k", -2),
    ("min_p", 2),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("repetition_penalty", 0),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"257": 1}),
    ("logit_bias", {str(i): 0 for i in range(1025)}),
    ("seed", 2**63),
    ("seed", "1"),
    ("stop", ""),
    ("stop", ["a"] * 17),
    ("stop", ["a" * 1025]),
    ("stop_token_ids", [257]),
    ("stop_token_ids", [-1]),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("stream_options", {"oops": True}),
    ("min_tokens", 2),
    ("min_tokens", -1),
    ("max_tokens", 255),
    ("max_tokens", -1),
    ("prompt_logprobs", 21),
    ("response_format", {"type": "grammar"}),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}),
    ("structured_outputs", {}),
    ("structured_outputs", {"regex": "a", "choice": ["b"]}),
    ("structured_outputs", {"grammar": "root ::= x"}),
    ("structured_outputs", {"choice": []}),
    ("structured_outputs", {"json": {"x": "y" * 70000}}),
    ("cache_salt", "x" * 257),
    ("mask", 3),
    ("made_up", 1),
    ("guided_regex", "a"),
    ("chat_template", "{{ 1 }}"),
    ("priority", 1),
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=lambda v: str(v)[:30])
async def test_bad_shared_fields(app: App, path: str, name: str, value: Any) -> None:
    body = COMPLETION if path == "/v1/completions" else CHAT
    status, answer = await post(app, path, {**body, name: value})
    error = answer["error"]
    assert status == 400, answer
    assert error["param"].split(".")[0].split("[")[0] == name, error
    assert not app.engine.requests, "a refused request must not reach the engine"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("best_of", 2, "invalid_value"),
        ("echo", "x", "invalid_value"),
        ("logprobs", 21, "invalid_value"),
        ("logprobs", True, "invalid_value"),
        ("suffix", "end", "unsupported_parameter"),
        ("prompt", None, "missing_required_parameter"),
        ("prompt", [], "invalid_value"),
        ("prompt", ["a"] * 129, "invalid_value"),
        ("prompt", {"a": 1}, "invalid_value"),
        ("prompt", 7, "invalid_value"),
        ("prompt", [257], "invalid_value"),
        ("prompt", "x" * 256, "context_length_exceeded"),
        ("prompt", [1] * 256, "context_length_exceeded"),
        ("max_tokens", 0, "invalid_value"),
        ("messages", USER, "unknown_parameter"),
    ],
    ids=lambda v: str(v)[:30],
)
async def test_bad_completion_fields(app: App, name: str, value: Any, code: str) -> None:
    answer = await post(app, "/v1/completions", {**COMPLETION, name: value})
    check_refused(answer, name, code)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"),
        ("store", True),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("prompt_cache_options", {"mode": "implicit"}),
    ],
)
async def test_chat_fields_that_are_not_implemented(app: App, name: str, value: Any) -> None:
    status, answer = await post(app, "/v1/chat/completions", {**CHAT, name: value})
    assert status == 400
    error = answer["error"]
    assert error["param"].split("[")[0] == name
    assert error["code"] == "unsupported_parameter"
    assert "not supported" in error["message"] or "(" in error["message"], error


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [], "tool_choice": "none", "functions": [], "function_call": "none"},
        {"tool_choice": "auto", "parallel_tool_calls": False},
        {"modalities": ["text"], "service_tier": "flex", "store": False, "metadata": {"a": "b"}},
        {"safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"model": None},
        {"user": "me", "response_format": {"type": "text"}, "reasoning_effort": "none"},
        dict.fromkeys(("n", "stop", "seed", "tools", "audio", "logit_bias", "stream")),
        dict.fromkeys(("made_up", "mask", "response_format", "cache_salt", "store")),
        {"stream": True, "stream_options": {"include_usage": None, "made_up": None}},
        {"structured_outputs": {"choice": ["a"], "regex": None, "grammar": None}},
    ],
)
async def test_values_that_ask_for_nothing_are_accepted(app: App, extra: dict[str, Any]) -> None:
    answer = await app.client.post("/v1/chat/completions", json={**CHAT, **extra})
    assert answer.status_code == 200, answer.text


async def test_null_in_a_schema_is_a_value(app: App) -> None:
    schema = {"const": None, "default": None}
    body = {**CHAT, "structured_outputs": {"json": schema}}
    assert (await post(app, "/v1/chat/completions", body))[0] == 200
    assert json.loads(app.engine.requests[0].sampling.structured.value) == schema


async def test_integers_however_they_are_written(app: App) -> None:
    text = json.dumps({**COMPLETION, "prompt": [5, 6], "stop_token_ids": [7], "seed": 3})
    for number in ("5", "6", "7", "3", "1"):
        text = text.replace(f" {number}", f" {number}.0").replace(f"[{number}", f"[{number}.0")
    headers = {"content-type": "application/json"}
    answer = await app.client.post("/v1/completions", content=text, headers=headers)
    assert answer.status_code == 200, answer.text
    [request] = app.engine.requests
    assert request.prompt_token_ids == (5, 6)
    sampling = request.sampling
    assert (sampling.stop_token_ids, sampling.seed, sampling.max_tokens) == ((7,), 3, 1)
    for number in ("1.5", "1e300", "1.0000001", '"1.0"', "true"):
        content = text.replace('"max_tokens": 1.0', f'"max_tokens": {number}')
        answer = await app.client.post("/v1/completions", content=content, headers=headers)
        assert answer.json()["error"]["param"] == "max_tokens", answer.text


HALF = "half \ud83d of it"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {**COMPLETION, "prompt": HALF}, "prompt"),
        ("/v1/completions", {**COMPLETION, "prompt": ["fine", HALF]}, "prompt[1]"),
        ("/v1/completions", {**COMPLETION, "model": HALF}, "model"),
        ("/v1/completions", {**COMPLETION, "stop": ["a", HALF]}, "stop[1]"),
        ("/v1/completions", {**COMPLETION, "user": HALF}, "user"),
        ("/v1/completions", {**COMPLETION, "cache_salt": HALF}, "cache_salt"),
        ("/v1/completions", {**COMPLETION, HALF: 1}, None),
        ("/v1/completions", {**COMPLETION, "logit_bias": {HALF: 1}}, "logit_bias"),
        (
            "/v1/completions",
            {**COMPLETION, "structured_outputs": {"json": {"enum": [1, HALF]}}},
            "structured_outputs.json.enum[1]",
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": HALF}]},
            "messages[0].content",
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
            "messages[0].content[0].text",
        ),
        ("/tokenize", {"prompt": HALF}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": HALF}]}, "messages[0].content"),
        ("/detokenize", {"tokens": [1], "model": HALF}, "model"),
    ],
    ids=lambda value: ascii(value)[:40],
)
async def test_half_a_character_is_named(
    app: App, path: str, body: dict[str, Any], param: str | None
) -> None:
    headers = {"content-type": "application/json"}
    answer = await app.client.post(path, content=json.dumps(body), headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert "'\\ud83d', a lone surrogate" in error["message"]
    # The bytes that Python's own codec would take for it are no UTF-8.
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    answer = await app.client.post(path, content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


async def test_whole_characters_pass_however_they_are_written(app: App) -> None:
    headers = {"content-type": "application/json"}
    for ascii_only in (True, False):
        content = json.dumps({"prompt": "a \U0001f600 \\ud83d"}, ensure_ascii=ascii_only)
        answer = await app.client.post("/tokenize", content=content, headers=headers)
        assert answer.json()["tokens"] == app.engine.codec.encode("a \U0001f600 \\ud83d")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "function", "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0]"),
        ([{"role": "user", "content": "x", "tool_call_id": "c"}], "messages[0]"),
        ([*USER, {"role": "tool", "tool_call_id": "c"}], "messages[1].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "system"}], "messages[0].content"),
        ([{"role": "user", "content": "x", "name": 3}], "messages[0].name"),
        ([{"role": "user", "content": "x", "name": "x" * 257}], "messages[0].name"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
        ),
        (
            [*USER, {"role": "assistant", "content": "x", "tool_calls": [{}]}],
            "messages[1].tool_calls[0].id",
        ),
        ([{"role": "assistant", "content": "first"}], "messages"),
    ],
)
async def test_bad_messages(app: App, messages: Any, param: str) -> None:
    answer = await post(app, "/v1/chat/completions", {**CHAT, "messages": messages})
    check_refused(answer, param)


async def test_messages_reach_the_template(app: App) -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "d", "name": "Ann", "audio": None},
        {"role": "assistant", "content": None},
        {"role": "assistant", "name": None},
        {"role": "user", "content": ""},
    ]
    status, _ = await post(app, "/v1/chat/completions", {**CHAT, "messages": messages})
    assert status == 200
    [request] = app.engine.requests
    text = app.engine.codec.decode(request.prompt_token_ids)
    assert text == (
        "<|system|>be kind\n<|user|>a\nb\n<|assistant|>c\n<|user:Ann|>d\n"
        "<|assistant|>\n<|assistant|>\n<|user|>\n<|assistant|>"
    )


async def test_sampling_reaches_the_engine(app: App) -> None:
    body = {
        **COMPLETION,
        "max_tokens": 7,
        "n": 2,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.25,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.5,
        "logit_bias": {"3": -100},
        "seed": -1,
        "stop": "END",
        "stop_token_ids": [4],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "min_tokens": 2,
        "logprobs": 0,
        "cache_salt": "salt",
        "mask": "french",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}},
        },
    }
    status, answer = await post(app, "/v1/completions", body)
    assert status == 200, answer
    [request] = app.engine.requests
    sampling = request.sampling
    assert (request.mask, request.cache_salt) == ("french", "salt")
    assert (sampling.n, sampling.temperature, sampling.top_p) == (2, 0, 0.5)
    assert (sampling.top_k, sampling.min_p) == (3, 0.25)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.repetition_penalty == 1.5
    assert sampling.logit_bias == {3: -100}
    assert sampling.seed is not None
    assert sampling.seed >= 0
    assert (sampling.stop, sampling.stop_token_ids) == (("END",), (4,))
    assert sampling.include_stop_str_in_output
    assert sampling.ignore_eos
    assert (sampling.min_tokens, sampling.max_tokens, sampling.logprobs) == (2, 7, 0)
    assert sampling.structured.kind == "json_schema"
    assert json.loads(sampling.structured.value) == {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]'),
        ({"structured_outputs": {"json_object": True}}, "json_object", ""),
        ({"structured_outputs": {"json": '{"type": "null"}'}}, "json_schema", '{"type": "null"}'),
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "json_object",
            "",
        ),
    ],
)
async def test_constraints_reach_the_engine(app: App, fields: Any, kind: str, value: str) -> None:
    status, answer = await post(app, "/v1/chat/completions", {**CHAT, **fields})
    assert status == 200, answer
    structured = app.engine.requests[0].sampling.structured
    assert (structured.kind, structured.value) == (kind, value)
    assert not structured.any_whitespace


async def test_the_layout_of_json_is_chosen_by_setting_and_request(tmp_path: Path) -> None:
    asked = {"structured_outputs": {"json_object": True, "disable_any_whitespace": True}}
    wanted = {"response_format": {"type": "json_object"}}
    async with open_app(tmp_path, json_whitespace="any") as app:
        for fields, expected in ((wanted, True), (asked, False)):
            status, answer = await post(app, "/v1/chat/completions", {**CHAT, **fields})
            assert status == 200, answer
            assert app.engine.requests[-1].sampling.structured.any_whitespace == expected


@pytest.mark.parametrize("asked", [{"echo": True, "logprobs": 1}, {"prompt_logprobs": 1}])
@pytest.mark.parametrize("prompt", ["x" * 256, [5] * 256, ["x" * 256, "y"]])
async def test_a_prompt_that_fills_the_context_is_scored(
    app: App, prompt: Any, asked: dict[str, Any]
) -> None:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 0, **asked}
    status, answer = await post(app, "/v1/completions", body)
    assert status == 200, answer
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    scores = choice["logprobs"]["token_logprobs"] if "echo" in asked else choice["prompt_logprobs"]
    assert len(scores) == 256
    assert answer["usage"]["completion_tokens"] == 0
    longer = "x" * 257 if isinstance(prompt, str) else [5] * 257
    answer = await post(app, "/v1/completions", {**body, "prompt": longer})
    check_refused(answer, "prompt", "context_length_exceeded")


async def test_two_masks_in_one_request_contradict_each_other(app: App) -> None:
    body = {**COMPLETION, "model": "tiny:french", "mask": "general"}
    check_refused(await post(app, "/v1/completions", body), "mask")
    status, _ = await post(app, "/v1/completions", {**body, "mask": "french"})
    assert status == 200


async def test_a_model_name_of_ones_own(tmp_path: Path) -> None:
    async with open_app(tmp_path, served_model_name="org/Name-1.0") as app:
        body = {**COMPLETION, "model": "org/Name-1.0:french"}
        status, answer = await post(app, "/v1/completions", body)
        assert (status, answer["model"]) == (200, "org/Name-1.0:french")
        card = (await app.client.get("/v1/models/org/Name-1.0:french")).json()
        assert (card["parent"], card["root"]) == ("org/Name-1.0", "tiny")
        assert (await post(app, "/v1/completions", COMPLETION))[0] == 404


async def test_answers_that_find_no_room_name_the_field_that_was_sent(app: App) -> None:
    chat = {"model": "tiny", "messages": USER}
    for path, fields, param in (
        ("/v1/completions", {**COMPLETION, "max_tokens": 1000}, "max_tokens"),
        ("/v1/chat/completions", {**chat, "max_tokens": 1000}, "max_tokens"),
        ("/v1/chat/completions", {**chat, "max_completion_tokens": 1000}, "max_completion_tokens"),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 1000}, "max_output_tokens"),
    ):
        answer = await post(app, path, fields)
        check_refused(answer, param, "context_length_exceeded")
        assert answer[1]["error"]["message"].endswith(f"shorten the prompt or lower {param}")


async def test_a_default_that_finds_no_room_is_named_as_one(app: App) -> None:
    answer = await post(app, "/v1/completions", {"model": "tiny", "prompt": "x" * 250})
    check_refused(answer, "prompt", "context_length_exceeded")
    message = answer[1]["error"]["message"]
    assert "the prompt has 250 and 16 are to be generated, the default of max_tokens" in message
    assert message.endswith("shorten the prompt or send max_tokens")
    answer = await post(app, "/v1/completions", {"model": "tiny", "prompt": "x" * 240})
    assert answer[0] == 200


async def test_a_mask_without_room_is_not_said_to_wait(app: App) -> None:
    status, answer = await post(app, "/v1/completions", {**COMPLETION, "prompt": "NO ROOM"})
    error = answer["error"]
    assert (status, error["code"]) == (429, "overloaded")
    assert error["message"].startswith("the memory for masks is taken; try again in ")
