"""`/v1/responses`, through OpenAI's own client, on an engine that writes what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError
from openai.types.responses import Response
from pydantic import BaseModel

from tests.serving.conftest import App
from tests.serving.tools.templates import CLOCK, WEATHER, open_client, open_family

TOOLS = [{"type": "function", **tool["function"]} for tool in (WEATHER, CLOCK)]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}</tool_call>'


async def create(app: App, **fields: Any) -> dict[str, Any]:
    answer = await app.client.post("/v1/responses", json={"model": "tiny", **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_a_text_is_answered_whole_and_streamed(tmp_path: Path) -> None:
    async with open_client(tmp_path, "hermes") as client:
        request = {"model": "tiny:french", "input": "SAY Good morning. YAS", "store": True}
        whole = await client.responses.create(**request)
        Response.model_validate(whole.model_dump(), strict=True)
        stream = await client.responses.create(**request, stream=True)
        events = [event async for event in stream]
    assert (whole.output_text, whole.status, whole.store) == ("Good morning.", "completed", False)
    assert whole.model == "tiny:french"
    assert whole.usage.output_tokens == len("Good morning.")
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert kinds.count("output_text.delta") > 5
    last = events[-1].response
    assert last.output_text == whole.output_text
    assert last.usage == whole.usage
    assert events[0].response.status == "in_progress"
    assert not events[0].response.output


async def test_a_limit_leaves_a_response_incomplete(tmp_path: Path) -> None:
    async with open_client(tmp_path, "hermes") as client:
        request = {"model": "tiny", "input": "SAY Good morning. YAS", "max_output_tokens": 4}
        whole = await client.responses.create(**request)
        events = [e async for e in await client.responses.create(**request, stream=True)]
    assert (whole.status, whole.output_text) == ("incomplete", "Good")
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.output[0].status == "incomplete"
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == "Good"


async def test_a_conversation_is_rendered_as_chat_renders_it(tmp_path: Path) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "It is noon.", "annotations": []}],
        },
        {"role": "developer", "content": "OBEY"},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        {"role": "assistant", "content": "It is noon."},
        {"role": "system", "content": "OBEY"},
    ]
    async with open_client(tmp_path, "hermes") as client:
        response = await client.responses.create(
            model="tiny",
            input=items,
            instructions="Be brief.",
            tools=[{**tool, "strict": False} for tool in TOOLS],
            temperature=0,
        )
        chat = await client.chat.completions.create(
            model="tiny", messages=messages, tools=[WEATHER, CLOCK], temperature=0
        )
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.output_text == chat.choices[0].message.content


async def test_calls_come_back_and_are_streamed(tmp_path: Path) -> None:
    request = {"model": "tiny", "input": f"SAY Let me see. {CALL} YAS", "tools": TOOLS}
    async with open_client(tmp_path, "hermes") as client:
        whole = await client.responses.create(**request)
        events = [e async for e in await client.responses.create(**request, stream=True)]
    Response.model_validate(whole.model_dump(), strict=True)
    message, call = whole.output
    assert message.content[0].text.strip() == "Let me see."
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert json.loads(call.arguments) == {"city": "Rome", "days": 2}
    streamed = events[-1].response.output
    assert [item.type for item in streamed] == ["message", "function_call"]
    assert streamed[1].arguments == call.arguments
    deltas = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(e.delta for e in deltas) == call.arguments
    assert len(deltas) > 10, "arguments come as they are written"
    assert {e.item_id for e in deltas} == {streamed[1].id}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "clock"}])
async def test_calls_are_enforced(tmp_path: Path, choice: Any) -> None:
    async with open_client(tmp_path, "hermes") as client:
        response = await client.responses.create(
            model="tiny", input="OBEY", tools=TOOLS, tool_choice=choice
        )
    calls = [item for item in response.output if item.type == "function_call"]
    assert calls
    assert choice == "required" or {call.name for call in calls} == {"clock"}


async def test_a_schema_of_the_text_is_enforced(tmp_path: Path) -> None:
    class City(BaseModel):
        name: str
        large: bool

    async with open_client(tmp_path, "hermes") as client:
        parsed = await client.responses.parse(model="tiny", input="OBEY", text_format=City)
        free = await client.responses.create(
            model="tiny", input="OBEY", text={"format": {"type": "json_object"}}
        )
    assert isinstance(parsed.output_parsed, City)
    assert isinstance(json.loads(free.output_text), dict)


async def test_what_changes_no_answer_is_taken(app: App) -> None:
    found = await create(
        app,
        input="hello",
        max_output_tokens=3,
        metadata={"trace": "7"},
        store=False,
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="auto",
        include=["reasoning.encrypted_content"],
        reasoning={"effort": None},
        truncation="disabled",
        background=False,
        text={"format": {"type": "text"}, "verbosity": "medium"},
    )
    assert (found["metadata"], found["user"]) == ({"trace": "7"}, "u")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({}, "input"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "truncation": "auto"}, "truncation"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "mcp", "server_url": "x"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "max_output_tokens": 100_000}, "max_output_tokens"),
        ({"input": "x" * 5000}, "input"),
        ({"input": "x", "nonsense": 1}, "nonsense"),
    ],
)
async def test_what_is_not_there_is_refused_by_name(
    app: App, fields: dict[str, Any], param: str
) -> None:
    answer = await app.client.post("/v1/responses", json={"model": "tiny", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert "messages" not in error["message"]


async def test_a_schema_that_cannot_be_enforced_names_the_field_that_was_sent(app: App) -> None:
    tool = {"type": "function", "name": "f", "strict": True, "parameters": {"type": "nonsense"}}
    answer = await app.client.post(
        "/v1/responses", json={"model": "tiny", "input": "x", "tools": [tool]}
    )
    assert answer.json()["error"]["param"] == "tools[0].parameters"


@pytest.mark.parametrize(
    "items",
    [
        [{"role": "user", "content": "x"}] * 4096,
        [
            {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"}
            for number in range(129)
        ],
    ],
    ids=["messages", "calls"],
)
async def test_input_that_is_too_long_as_messages_is_refused(
    app: App, items: list[dict[str, Any]]
) -> None:
    body = {"model": "tiny", "input": items, "instructions": "Be brief."}
    answer = await app.client.post("/v1/responses", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "input"
    assert "at most" in answer.json()["error"]["message"]


async def test_names_that_the_client_chose_stay_in_refusals(app: App) -> None:
    tools = [{"type": "function", "name": "messages"}] * 2
    body = {"model": "tiny", "input": "x", "tools": tools}
    error = (await app.client.post("/v1/responses", json=body)).json()["error"]
    assert error["param"] == "tools[1].name"
    assert "'messages'" in error["message"]


async def test_nothing_is_kept(tmp_path: Path) -> None:
    async with open_client(tmp_path, "hermes") as client:
        with pytest.raises(NotFoundError, match="responses are not kept"):
            await client.responses.retrieve("resp_1")
        with pytest.raises(BadRequestError, match="previous_response_id"):
            await client.responses.create(model="tiny", input="x", previous_response_id="resp_1")


@pytest.mark.parametrize(
    ("said", "code"), [("FAIL", "server_error"), ("INVALID", "invalid_prompt")]
)
async def test_a_failure_in_the_stream_is_an_event(tmp_path: Path, said: str, code: str) -> None:
    async with open_client(tmp_path, "hermes") as client:
        stream = await client.responses.create(model="tiny", input=said, stream=True)
        events = [event async for event in stream]
    assert events[-1].type == "response.failed"
    response = events[-1].response
    Response.model_validate(response.model_dump(), strict=True)
    assert response.status == "failed"
    assert response.error.code == code
    assert "secret" not in response.error.message
    assert [item.status for item in response.output] == ["incomplete"]


@pytest.mark.parametrize(
    ("given", "schema", "strict"),
    [
        (None, {"type": "object", "properties": {"a": {"type": "integer"}}}, True),
        (False, {"type": "object"}, False),
        (None, {"type": "array"}, False),
        (None, {"type": "object", "properties": {"a": {"pattern": "(?=b)a"}}}, False),
    ],
)
async def test_functions_are_strict_unless_the_request_or_the_schema_says_otherwise(
    tmp_path: Path, given: bool | None, schema: dict[str, Any], strict: bool
) -> None:
    tool = {"type": "function", "name": "f", "parameters": schema, "strict": given}
    async with open_family(tmp_path, "hermes") as app:
        answer = await create(app, input="SAY hi YAS", tools=[tool])
        structured = app.engine.requests[-1].sampling.structured
    assert answer["tools"][0]["strict"] is strict
    assert (structured is not None) == strict
