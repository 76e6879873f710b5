"""Tools over HTTP, through OpenAI's own client, on an engine that writes what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from tests.serving.conftest import App, open_app
from tests.serving.tools.templates import CLOCK, TEMPLATES, WEATHER, open_client, open_family

ARGUMENTS = '{"city": "Rome", "days": 2}'
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>',
    "llama3_json": '<|python_tag|>{"name": "get_weather", "parameters": %s}',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": %s}]',
    "json": '{"name": "get_weather", "arguments": %s}',
}


class Weather(BaseModel):
    """What an answer is parsed into."""

    rain: bool


def asks(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": asks("OBEY"), "tools": [WEATHER, CLOCK], **fields}


async def refused(app: App, **fields: Any) -> dict[str, Any]:
    answer = await app.client.post("/v1/chat/completions", json=body(**fields))
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize("family", TEMPLATES)
async def test_a_call_is_read_whole_and_streamed(tmp_path: Path, family: str) -> None:
    said = f"SAY {WRITTEN[family] % ARGUMENTS} YAS"
    async with open_client(tmp_path, family) as client:
        whole = await client.chat.completions.create(
            model="tiny", messages=asks(said), tools=[WEATHER, CLOCK]
        )
        ChatCompletion.model_validate(whole.model_dump(), strict=True)
        [choice] = whole.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        [call] = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "get_weather")
        assert call.function.arguments == ARGUMENTS

        async with client.chat.completions.stream(
            model="tiny", messages=asks(said), tools=[WEATHER, CLOCK]
        ) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_completion()
        [streamed] = final.choices
        assert streamed.finish_reason == "tool_calls"
        assert streamed.message.tool_calls[0].function.arguments == ARGUMENTS
        assert streamed.message.tool_calls[0].function.name == "get_weather"
        pieces = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
        assert len(pieces) > 10, "arguments come as they are written"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client's own
async def test_messages_that_the_client_parsed_go_back_as_they_are(tmp_path: Path) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    async with open_client(tmp_path, "hermes") as client:
        history = asks("OBEY")
        called = await client.chat.completions.parse(
            model="tiny", messages=history, tools=[strict], tool_choice="required"
        )
        [call, *others] = called.choices[0].message.tool_calls
        assert call.function.parsed_arguments == json.loads(call.function.arguments)
        results = [
            {"role": "tool", "tool_call_id": one.id, "content": "Rain."} for one in (call, *others)
        ]
        history += [called.choices[0].message, *results]
        parsed = await client.chat.completions.parse(
            model="tiny", messages=history, response_format=Weather
        )
        message = parsed.choices[0].message
        assert isinstance(message.parsed, Weather)
        last = await client.chat.completions.create(
            model="tiny", messages=[*history, message, *asks("SAY hi YAS")], tools=[WEATHER]
        )
    assert last.choices[0].message.content == "hi"


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("parallel", [True, False])
async def test_a_required_call_is_enforced(tmp_path: Path, family: str, parallel: bool) -> None:
    async with open_client(tmp_path, family) as client:
        answer = await client.chat.completions.create(
            **body(tool_choice="required", parallel_tool_calls=parallel)
        )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert len(choice.message.tool_calls) >= 1
    assert parallel or len(choice.message.tool_calls) == 1
    for call in choice.message.tool_calls:
        check_arguments(call.function.name, call.function.arguments)


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("name", ["get_weather", "clock"])
async def test_a_named_call_is_enforced(tmp_path: Path, family: str, name: str) -> None:
    choice = {"type": "function", "function": {"name": name}}
    async with open_client(tmp_path, family) as client:
        answer = await client.chat.completions.create(**body(tool_choice=choice))
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == name
    check_arguments(name, call.function.arguments)
    assert answer.choices[0].finish_reason == "stop", "as OpenAI ends a call that was named"


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"description": "anything"},
        {"required": ["a"]},
        {"properties": {"a": {"type": "boolean"}}},
        {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"a": {"const": 1}}}]},
    ],
)
async def test_arguments_are_an_object_whatever_the_schema_leaves_open(
    tmp_path: Path, parameters: dict[str, Any]
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    async with open_family(tmp_path, "hermes") as app:
        fields = body(tools=[tool], tool_choice="required")
        await app.client.post("/v1/chat/completions", json=fields)
        structured = app.engine.requests[-1].sampling.structured
        text = WRITTEN["hermes"].replace("get_weather", "f")
        accepted = {
            given
            for given in ("true", "null", "5", '"a"', "[]")
            if matches(app, structured, text % given)
        }
    assert not accepted


async def test_arguments_nested_too_deeply_stay_text_or_are_refused(tmp_path: Path) -> None:
    deep = "[" * 1000 + "]" * 1000
    call = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": deep}}
    history = [*asks("x"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    async with open_family(tmp_path, "hermes") as app:
        answer = await app.client.post("/v1/chat/completions", json=body(messages=history))
        assert answer.status_code == 200, answer.text
        tool = {"type": "function", "function": {"name": "f", "parameters": {"a": nested(300)}}}
        error = await refused(app, tools=[tool])
        assert "200 levels" in error["message"]
        flat = {"type": "function", "name": "f", "parameters": {"a": nested(300)}}
        answer = await app.client.post("/v1/responses", json={"input": "x", "tools": [flat]})
        assert answer.status_code == 400, answer.text
        flat["parameters"] = {"a": nested(150)}
        answer = await app.client.post("/v1/responses", json={"input": "x", "tools": [flat]})
        assert answer.status_code == 200, answer.text


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def check_arguments(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "clock":
        assert given == {}
    else:
        assert set(given) == {"city", "days"}
        assert len(given["city"]) <= 4
        assert 0 <= given["days"] <= 9


@pytest.mark.parametrize("family", TEMPLATES)
async def test_strict_tools_bind_free_calls(tmp_path: Path, family: str) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    async with open_family(tmp_path, family) as app:
        for tools, constrained in ([WEATHER], False), ([strict], True):
            answer = await app.client.post(
                "/v1/chat/completions",
                json=body(messages=asks("SAY hi YAS"), tools=tools),
            )
            assert answer.json()["choices"][0]["message"]["content"] == "hi", answer.text
            structured = app.engine.requests[-1].sampling.structured
            assert (structured is not None) == constrained
            if structured is None:
                continue
            text = WRITTEN[family]
            assert matches(app, structured, text % '{"city": "Rome", "days": 2}')
            assert matches(app, structured, "Just text, with { and <.")
            assert not matches(app, structured, text % '{"city": 5}')


def matches(app: App, structured: Any, text: str) -> bool:
    constraint = app.engine.constraints.compile(structured)
    for token in app.engine.codec.encode(text):
        if not constraint.allowed(app.engine.codec.vocab_size)[token]:
            return False
        constraint.push(token)
    return bool(constraint.allowed(app.engine.codec.vocab_size)[0])


async def test_calls_and_results_reach_the_template(tmp_path: Path) -> None:
    messages = [
        *asks("weather?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": ARGUMENTS},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    async with open_family(tmp_path, "hermes") as app:
        answer = await app.client.post("/v1/chat/completions", json=body(messages=messages))
        assert answer.status_code == 200, answer.text
        prompt = app.engine.codec.decode(app.engine.requests[0].prompt_token_ids)
    assert prompt.startswith('TOOLS [{"type": "function", "function": {"name": "get_weather"')
    assert f'CALL{{"name": "get_weather", "arguments": {ARGUMENTS}}}' in prompt
    assert "<|tool|>sunnyANSWERS call_1" in prompt


async def test_a_template_without_tools_is_told_in_plain_words(tmp_path: Path) -> None:
    call = {"id": "c", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be kind."},
        *asks("time?"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "noon"},
    ]
    async with open_family(tmp_path, "json") as app:
        await app.client.post("/v1/chat/completions", json=body(messages=messages))
        prompt = app.engine.codec.decode(app.engine.requests[0].prompt_token_ids)
        version = (await app.client.get("/version")).json()
    assert version["tools"] == {"parser": "json", "prompt": "plain"}
    assert prompt.startswith("<|system|>Be kind.\n\nYou can call functions.")
    assert '{"name": "clock"}' in prompt
    assert '<|assistant|>{"name": "clock", "arguments": {}}' in prompt
    assert "<|user|>clock returned: noon" in prompt


async def test_no_calls_when_none_are_wanted(tmp_path: Path) -> None:
    said = asks(f"SAY {WRITTEN['hermes'] % ARGUMENTS} YAS")
    async with open_family(tmp_path, "hermes") as app:
        fields = body(tool_choice="none", messages=said)
        answer = await app.client.post("/v1/chat/completions", json=fields)
        [choice] = answer.json()["choices"]
        assert choice["message"]["content"] == WRITTEN["hermes"] % ARGUMENTS
        assert choice["finish_reason"] == "stop"
        prompt = app.engine.codec.decode(app.engine.requests[0].prompt_token_ids)
        assert "TOOLS" not in prompt


async def test_a_call_that_is_cut_off_says_so(tmp_path: Path) -> None:
    said = asks(f"SAY {WRITTEN['hermes'] % ARGUMENTS} YAS")
    async with open_family(tmp_path, "hermes") as app:
        answer = await app.client.post(
            "/v1/chat/completions", json=body(messages=said, max_tokens=60)
        )
    [choice] = answer.json()["choices"]
    assert choice["finish_reason"] == "length"
    [call] = choice["message"]["tool_calls"]
    assert ARGUMENTS.startswith(call["function"]["arguments"])


async def test_a_call_that_a_stop_string_cuts_off_is_no_reason_to_finish(tmp_path: Path) -> None:
    said = f"SAY {WRITTEN['hermes'] % ARGUMENTS} YAS"
    async with open_client(tmp_path, "hermes") as client:
        fields = body(messages=asks(said), tools=[WEATHER], stop="Ro")
        [choice] = (await client.chat.completions.create(**fields)).choices
        assert choice.message.tool_calls[0].function.arguments.endswith('"city": "')
        assert choice.finish_reason == "stop"
        flat = [{"type": "function", **WEATHER["function"], "strict": False}]
        response = await client.responses.create(
            model="tiny", input=said, tools=flat, max_output_tokens=60
        )
        [item] = response.output
        assert (item.type, item.status) == ("function_call", "incomplete")


async def test_json_or_a_call(tmp_path: Path) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 5}}}
    async with open_family(tmp_path, "hermes") as app:
        answer = await app.client.post("/v1/chat/completions", json=body(response_format=wanted))
        assert answer.status_code == 200, answer.text
        structured = app.engine.requests[0].sampling.structured
        assert matches(app, structured, "5")
        assert matches(app, structured, WRITTEN["hermes"] % ARGUMENTS)
        assert not matches(app, structured, "text")


async def test_the_parser_can_be_chosen(tmp_path: Path) -> None:
    async with open_app(tmp_path, tool_parser="mistral") as app:
        version = (await app.client.get("/version")).json()
    assert version["tools"] == {"parser": "mistral", "prompt": "plain"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
async def test_what_is_refused(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async with open_family(tmp_path, "hermes") as app:
        error = await refused(app, **fields)
        assert error["param"] == param, error
        assert not app.engine.requests


async def test_a_schema_that_cannot_be_enforced_is_named(tmp_path: Path) -> None:
    def tool(schema: dict[str, Any]) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "f", "parameters": schema}}

    async with open_family(tmp_path, "hermes") as app:
        error = await refused(app, tools=[tool({"type": "string"})], tool_choice="required")
        assert error["param"] == "tools[0].function.parameters"
        assert "the schema's type is 'string'" in error["message"]
        impossible = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
        error = await refused(app, tools=[tool(impossible)], tool_choice="required")
        assert error["param"] == "tools"
        assert "Unimplemented keys" in error["message"]


async def test_the_client_raises_what_the_server_says(tmp_path: Path) -> None:
    async with open_client(tmp_path, "hermes") as client:
        with pytest.raises(openai.BadRequestError, match="tool_choice needs tools"):
            await client.chat.completions.create(
                model="tiny", messages=asks("hi"), tool_choice="required"
            )
