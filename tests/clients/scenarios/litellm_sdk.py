"""LiteLLM's SDK: completion, streams, tools, structured output, responses."""

from __future__ import annotations

from typing import Any, Literal

import litellm
from pydantic import BaseModel
from scenario import QUESTION, REPORT, WEATHER, WEATHER_QUESTION, main

ASKED = [{"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": WEATHER},
}


class River(BaseModel):
    """A river."""

    country: Literal["Austria", "France", "Italy"]
    navigable: bool


def options(url: str, model: str) -> dict[str, Any]:
    return {
        "model": f"openai/{model}",
        "api_base": f"{url}/v1",
        "api_key": "none-needed",
        "temperature": 0,
        "num_retries": 0,
    }


def text(url: str, model: str) -> Any:
    asked = {**options(url, model), "messages": ASKED, "max_tokens": 24}
    whole = litellm.completion(**asked)
    stream = litellm.completion(**asked, stream=True, stream_options={"include_usage": True})
    joined = litellm.stream_chunk_builder(list(stream), messages=ASKED)
    return {
        "text": whole.choices[0].message.content,
        "usage": whole.usage.model_dump(),
        "streamed": joined.choices[0].message.content,
        "streamed_usage": joined.usage.model_dump(),
    }


def tools(url: str, model: str) -> Any:
    history: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    asked = {**options(url, model), "tools": [TOOL]}
    forced = {**asked, "messages": history, "tool_choice": "required"}
    message = litellm.completion(**forced).choices[0].message
    joined = litellm.stream_chunk_builder(list(litellm.completion(**forced, stream=True)))
    results = [
        {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": REPORT}
        for call in message.tool_calls
    ]
    last = litellm.completion(**asked, messages=[*history, message, *results], max_tokens=24)
    return {
        "calls": shown(message.tool_calls),
        "streamed": shown(joined.choices[0].message.tool_calls),
        "schema": WEATHER,
        "answer": last.choices[0].message.content,
    }


def shown(calls: Any) -> Any:
    return [{"name": call.function.name, "arguments": call.function.arguments} for call in calls]


def structured(url: str, model: str) -> Any:
    asked = {**options(url, model), "messages": ASKED}
    answer = litellm.completion(**asked, response_format=River)
    return River.model_validate_json(answer.choices[0].message.content).model_dump()


def responses(url: str, model: str) -> Any:
    asked = {**options(url, model), "input": QUESTION, "max_output_tokens": 24}
    whole = litellm.responses(**asked)
    events = list(litellm.responses(**asked, stream=True))
    flat = {"type": "function", **TOOL["function"]}
    asked = {**options(url, model), "tools": [flat]}
    history: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    called = litellm.responses(**asked, input=history, tool_choice="required")
    calls = [item for item in called.output if item.type == "function_call"]
    history += [item.model_dump(exclude_none=True) for item in called.output]
    history += [
        {"type": "function_call_output", "call_id": call.call_id, "output": REPORT}
        for call in calls
    ]
    last = litellm.responses(**asked, input=history, max_output_tokens=24)
    return {
        "text": output_text(whole),
        "usage": whole.usage.model_dump(),
        "streamed": output_text(events[-1].response),
        "calls": [{"name": call.name, "arguments": call.arguments} for call in calls],
        "schema": WEATHER,
        "answer": output_text(last),
    }


def output_text(answer: Any) -> str:
    messages = (item for item in answer.output if item.type == "message")
    return "".join(part.text for item in messages for part in item.content)


main({"text": text, "tools": tools, "structured": structured, "responses": responses})
