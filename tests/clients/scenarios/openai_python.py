"""OpenAI's Python client: chat, completions, responses, tools and structured output."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field
from scenario import QUESTION, REPORT, WEATHER, WEATHER_QUESTION, main

ASKED = [{"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": WEATHER},
}


class River(BaseModel):
    """What the answer is parsed into."""

    country: Literal["Austria", "France", "Italy"]
    length_km: Annotated[int, Field(ge=1, le=9000)]
    navigable: bool


class GetWeather(BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Paris", "Rome"]
    unit: Literal["celsius", "fahrenheit"]


def connect(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", max_retries=0)


def chat(url: str, model: str) -> Any:
    """The same answer, whole and streamed, with usage."""
    options = {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": 24}
    with connect(url) as client:
        whole = client.chat.completions.create(**options)
        usage = {"include_usage": True}
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options=usage))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    return {
        "text": whole.choices[0].message.content,
        "usage": whole.usage.model_dump(),
        "streamed": "".join(filter(None, pieces)),
        "streamed_usage": chunks[-1].usage.model_dump(),
    }


def completions(url: str, model: str) -> Any:
    options = {"model": model, "prompt": "The river", "temperature": 0, "max_tokens": 12}
    with connect(url) as client:
        whole = client.completions.create(**options, logprobs=2)
        chunks = list(client.completions.create(**options, stream=True))
    return {
        "text": whole.choices[0].text,
        "tokens": whole.choices[0].logprobs.tokens,
        "usage": whole.usage.model_dump(),
        "streamed": "".join(chunk.choices[0].text for chunk in chunks),
    }


def tools(url: str, model: str) -> Any:
    """A call that must be made, its result, and an answer."""
    messages: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    with connect(url) as client:
        options = {"model": model, "tools": [TOOL], "temperature": 0}
        forced = {**options, "messages": messages, "tool_choice": "required"}
        first = client.chat.completions.create(**forced)
        with client.chat.completions.stream(**forced) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion().choices[0].message.tool_calls
        message = first.choices[0].message
        messages.append(message)
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": REPORT})
        last = client.chat.completions.create(**options, messages=messages, max_tokens=24)
    return {
        "calls": [call.function.model_dump() for call in message.tool_calls],
        "streamed": [
            {"name": c.function.name, "arguments": c.function.arguments} for c in streamed
        ],
        "finish": first.choices[0].finish_reason,
        "schema": WEATHER,
        "answer": last.choices[0].message.model_dump(),
    }


def structured(url: str, model: str) -> Any:
    """`parse` of a schema, and of the arguments of a strict function."""
    with connect(url) as client:
        options = {"model": model, "messages": ASKED, "temperature": 0}
        river = client.chat.completions.parse(**options, response_format=River)
        tool = pydantic_function_tool(GetWeather)
        call = client.chat.completions.parse(**options, tools=[tool], tool_choice="required")
        with client.chat.completions.stream(**options, response_format=River) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion().choices[0].message.parsed
    arguments = [c.function.parsed_arguments for c in call.choices[0].message.tool_calls]
    assert all(isinstance(one, GetWeather) for one in arguments)
    return {
        "river": river.choices[0].message.parsed.model_dump(),
        "streamed": streamed.model_dump(),
        "arguments": [one.model_dump() for one in arguments],
    }


def responses(url: str, model: str) -> Any:
    """The Responses API: text, streamed text, and a round trip with a function."""
    flat = {"type": "function", **TOOL["function"], "strict": True}
    options = {"model": model, "temperature": 0, "max_output_tokens": 24}
    with connect(url) as client:
        whole = client.responses.create(**options, input=QUESTION)
        events = list(client.responses.create(**options, input=QUESTION, stream=True))
        history: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
        called = client.responses.create(
            model=model, temperature=0, input=history, tools=[flat], tool_choice="required"
        )
        history += called.output
        calls = [item for item in called.output if item.type == "function_call"]
        for call in calls:
            history.append(
                {"type": "function_call_output", "call_id": call.call_id, "output": REPORT}
            )
        last = client.responses.create(**options, input=history, tools=[flat])
        free = {"model": model, "temperature": 0, "input": QUESTION, "text_format": River}
        parsed = client.responses.parse(**free)
        with client.responses.stream(**free) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_response()
    return {
        "text": whole.output_text,
        "streamed": events[-1].response.output_text,
        "usage": whole.usage.model_dump(),
        "streamed_usage": events[-1].response.usage.model_dump(),
        "calls": [{"name": call.name, "arguments": call.arguments} for call in calls],
        "schema": WEATHER,
        "answer": [item.type for item in last.output],
        "river": parsed.output_parsed.model_dump(),
        "streamed_river": streamed.output_parsed.model_dump(),
    }


def cut_stream(url: str, model: str) -> Any:
    """The stream helper on an answer that the token limit cuts off."""
    with connect(url) as client:
        asked = {"model": model, "input": QUESTION, "max_output_tokens": 4, "temperature": 0}
        with client.responses.stream(**asked) as stream:
            return [event.type for event in stream], stream.get_final_response().status


def parsed_history(url: str, model: str) -> Any:
    """Messages that `parse` gave go back into the conversation as they are."""
    asked = {"model": model, "temperature": 0, "max_tokens": 64}
    history: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    with connect(url) as client:
        tool = pydantic_function_tool(GetWeather)
        called = client.chat.completions.parse(
            **asked, messages=history, tools=[tool], tool_choice="required"
        )
        history.append(called.choices[0].message)
        for call in called.choices[0].message.tool_calls:
            history.append({"role": "tool", "tool_call_id": call.id, "content": REPORT})
        river = client.chat.completions.parse(**asked, messages=history, response_format=River)
        history.append(river.choices[0].message)
        history.append({"role": "user", "content": "And another?"})
        last = client.chat.completions.parse(**asked, messages=history, response_format=River)
    return [
        river.choices[0].message.parsed.model_dump(),
        last.choices[0].message.parsed.model_dump(),
    ]


def models(url: str, model: str) -> Any:
    with connect(url) as client:
        return [card.id for card in client.models.list()]


main(
    {
        "chat": chat,
        "completions": completions,
        "tools": tools,
        "structured": structured,
        "responses": responses,
        "cut_stream": cut_stream,
        "parsed_history": parsed_history,
        "models": models,
    }
)
