"""Pydantic AI: an agent with a typed output (its default: through tools), and one with a tool."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, Tool
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from scenario import QUESTION, REPORT, WEATHER_QUESTION, main


class River(BaseModel):
    """A river."""

    country: Literal["Austria", "France", "Italy"]
    length_km: Annotated[int, Field(ge=1, le=9000)]
    navigable: bool


def chat_model(url: str, model: str, kind: Any = OpenAIChatModel) -> Any:
    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none-needed")
    return kind(model, provider=provider)


async def text(url: str, model: str, kind: Any = OpenAIChatModel) -> Any:
    agent = Agent(chat_model(url, model, kind), model_settings={"temperature": 0, "max_tokens": 24})
    whole = await agent.run(QUESTION)
    async with agent.run_stream(QUESTION) as stream:
        streamed = await stream.get_output()
        usage = stream.usage
    return {
        "text": whole.output,
        "usage": counted(whole.usage),
        "streamed": streamed,
        "streamed_usage": counted(usage),
    }


def counted(usage: Any) -> Any:
    return {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}


async def output(url: str, model: str, kind: Any = OpenAIChatModel) -> Any:
    settings = {"temperature": 0, "max_tokens": 128}
    found = {}
    for name, form in {"tool": River, "native": NativeOutput(River)}.items():
        agent = Agent(chat_model(url, model, kind), output_type=form, model_settings=settings)
        done = await agent.run(QUESTION)
        async with agent.run_stream(QUESTION) as stream:
            streamed = await stream.get_output()
        found[name] = {"river": done.output.model_dump(), "streamed": streamed.model_dump()}
    return found


async def tools(url: str, model: str, kind: Any = OpenAIChatModel) -> Any:
    """A function, then an answer: the model has to call first, and may not call after that."""
    asked: list[Any] = []

    def get_weather(
        city: Literal["Oslo", "Paris", "Rome"], unit: Literal["celsius", "fahrenheit"]
    ) -> str:
        """The weather of a city."""
        asked.append({"city": city, "unit": unit})
        return REPORT

    async def while_nothing_is_known(ctx: Any, tool: Any) -> Any:
        return None if asked else tool

    tool = Tool(get_weather, prepare=while_nothing_is_known)
    settings = {"temperature": 0, "max_tokens": 128}
    agent = Agent(
        chat_model(url, model, kind), tools=[tool], output_type=River, model_settings=settings
    )
    done = await agent.run(WEATHER_QUESTION + " Call get_weather.")
    parts = [part for message in done.all_messages() for part in message.parts]
    return {
        "asked": asked,
        "returned": [part.content for part in parts if part.part_kind == "tool-return"],
        "river": done.output.model_dump(),
        "usage": counted(done.usage),
    }


def responses(run: Any) -> Any:
    return lambda url, model: run(url, model, OpenAIResponsesModel)


main(
    {
        "text": text,
        "output": output,
        "tools": tools,
        "responses_text": responses(text),
        "responses_output": responses(output),
        "responses_tools": responses(tools),
    }
)
