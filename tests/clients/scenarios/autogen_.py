"""AutoGen's assistant, with a function tool and the reflection on what it gave."""

from __future__ import annotations

import json
from typing import Any, Literal

from autogen_agentchat.agents import AssistantAgent
from autogen_core import CancellationToken
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from scenario import QUESTION, REPORT, WEATHER_QUESTION, main

INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "family": "unknown",
}


def connect(url: str, model: str, **options: Any) -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
        model=model,
        base_url=f"{url}/v1",
        api_key="none-needed",
        model_info=INFO,
        temperature=0,
        max_retries=0,
        **options,
    )


def get_weather(
    city: Literal["Oslo", "Paris", "Rome"], unit: Literal["celsius", "fahrenheit"]
) -> str:
    """The weather of a city."""
    return f"{REPORT} ({city}, {unit})"


async def text(url: str, model: str) -> Any:
    client = connect(url, model, max_tokens=24)
    asked = [UserMessage(content=QUESTION, source="anna")]
    whole = await client.create(asked)
    *_, streamed = [part async for part in client.create_stream(asked, include_usage=True)]
    await client.close()
    return {
        "text": whole.content,
        "usage": counted(whole.usage),
        "streamed": streamed.content,
        "streamed_usage": counted(streamed.usage),
    }


def counted(usage: Any) -> Any:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


async def tools(url: str, model: str) -> Any:
    """A call that must be made, its result, and an answer."""
    client = connect(url, model, max_tokens=96)
    tool = FunctionTool(get_weather, description="The weather of a city.", strict=True)
    asked: list[Any] = [UserMessage(content=WEATHER_QUESTION, source="anna")]
    forced = {"tools": [tool], "tool_choice": "required"}
    called = await client.create(asked, **forced)
    *_, streamed = [part async for part in client.create_stream(asked, **forced)]
    asked.append(AssistantMessage(content=called.content, source="guide"))
    results = []
    for call in called.content:
        given = await tool.run_json(json.loads(call.arguments), CancellationToken())
        results.append(
            FunctionExecutionResult(
                content=str(given), call_id=call.id, name=call.name, is_error=False
            )
        )
    asked.append(FunctionExecutionResultMessage(content=results))
    last = await client.create(asked, tools=[tool], tool_choice="none")
    await client.close()
    return {
        "calls": shown(called.content),
        "streamed": shown(streamed.content),
        "results": [result.content for result in results],
        "answer": last.content,
    }


def shown(calls: Any) -> Any:
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


async def agent(url: str, model: str) -> Any:
    """An agent that may call, and thinks about what a call gave if it does."""
    client = connect(url, model, max_tokens=64)
    guide = AssistantAgent("guide", client, tools=[get_weather], reflect_on_tool_use=True)
    done = await guide.run(task=WEATHER_QUESTION)
    await client.close()
    return {
        "kinds": [type(message).__name__ for message in done.messages],
        "answer": str(done.messages[-1].content),
    }


main({"text": text, "tools": tools, "agent": agent})
