"""LangChain's ChatOpenAI: text, streams, bound tools, structured output, the Responses mode."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from scenario import QUESTION, REPORT, WEATHER_QUESTION, main


class River(BaseModel):
    """A river."""

    country: Literal["Austria", "France", "Italy"]
    navigable: bool


@tool
def get_weather(
    city: Literal["Oslo", "Paris", "Rome"], unit: Literal["celsius", "fahrenheit"]
) -> str:
    """The weather of a city."""
    return f"{REPORT} ({city}, {unit})"


def connect(url: str, model: str, **options: Any) -> ChatOpenAI:
    options = {
        "temperature": 0,
        "max_tokens": 24,
        "max_retries": 0,
        "stream_usage": True,
        **options,
    }
    return ChatOpenAI(base_url=f"{url}/v1", model=model, **options)


def text(url: str, model: str, **options: Any) -> Any:
    asked = [HumanMessage(QUESTION, name="anna")] if not options else QUESTION
    chat = connect(url, model, **options)
    whole = chat.invoke(asked)
    total = None
    for chunk in chat.stream(asked):
        total = chunk if total is None else total + chunk
    return {
        "text": whole.text,
        "usage": whole.usage_metadata,
        "streamed": total.text,
        "streamed_usage": total.usage_metadata,
    }


def tools(url: str, model: str, **options: Any) -> Any:
    chat = connect(url, model, **{"max_tokens": 96, **options})
    history: list[Any] = [HumanMessage(WEATHER_QUESTION)]
    bound = chat.bind_tools([get_weather], tool_choice="any")
    called = bound.invoke(history)
    total = None
    for chunk in bound.stream(history):
        total = chunk if total is None else total + chunk
    history.append(called)
    results = [get_weather.invoke(call) for call in called.tool_calls]
    last = chat.bind_tools([get_weather]).invoke(history + results)
    shown = [{"name": call["name"], "arguments": call["args"]} for call in called.tool_calls]
    return {
        "calls": shown,
        "streamed": [{"name": c["name"], "arguments": c["args"]} for c in total.tool_calls],
        "results": [result.content for result in results],
        "answer": last.text,
        "more": last.tool_calls,
    }


def structured(url: str, model: str) -> Any:
    found = {}
    for method in ("json_schema", "function_calling"):
        chat = connect(url, model, max_tokens=128)
        parsed = chat.with_structured_output(River, method=method).invoke(QUESTION)
        found[method] = parsed.model_dump()
    return found


def responses_text(url: str, model: str) -> Any:
    return text(url, model, use_responses_api=True)


def responses_tools(url: str, model: str) -> Any:
    return tools(url, model, use_responses_api=True)


main(
    {
        "text": text,
        "tools": tools,
        "structured": structured,
        "responses_text": responses_text,
        "responses_tools": responses_tools,
    }
)
