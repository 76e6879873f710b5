"""OpenAI's Agents SDK, by chat completions and by responses, with a function tool."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
)
from openai import AsyncOpenAI
from pydantic import BaseModel, Field
from scenario import QUESTION, REPORT, WEATHER_QUESTION, main


class River(BaseModel):
    """A river."""

    country: Literal["Austria", "France", "Italy"]
    length_km: Annotated[int, Field(ge=1, le=9000)]
    navigable: bool


def chosen(url: str, model: str, kind: Any) -> Any:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none-needed", max_retries=0)
    return kind(model=model, openai_client=client)


async def text(url: str, model: str, kind: Any) -> Any:
    agent = Agent(
        name="guide",
        instructions="Be brief.",
        model=chosen(url, model, kind),
        model_settings=ModelSettings(temperature=0, max_tokens=24, include_usage=True),
    )
    whole = await Runner.run(agent, QUESTION)
    stream = Runner.run_streamed(agent, QUESTION)
    async for _ in stream.stream_events():
        pass
    return {
        "text": whole.final_output,
        "usage": counted(whole),
        "streamed": stream.final_output,
        "streamed_usage": counted(stream),
    }


def counted(done: Any) -> Any:
    usage = done.context_wrapper.usage
    return {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}


async def tools(url: str, model: str, kind: Any) -> Any:
    asked: list[Any] = []

    @function_tool
    def get_weather(
        city: Literal["Oslo", "Paris", "Rome"], unit: Literal["celsius", "fahrenheit"]
    ) -> str:
        """The weather of a city."""
        asked.append({"city": city, "unit": unit})
        return REPORT

    # After the first turn the SDK itself sets the choice back, so that the model may answer.
    agent = Agent(
        name="guide",
        model=chosen(url, model, kind),
        tools=[get_weather],
        model_settings=ModelSettings(temperature=0, max_tokens=96, tool_choice="required"),
    )
    whole = await Runner.run(agent, WEATHER_QUESTION, max_turns=4)
    called = len(asked)
    stream = Runner.run_streamed(agent, WEATHER_QUESTION, max_turns=4)
    async for _ in stream.stream_events():
        pass
    return {
        "asked": asked[:called],
        "asked_streamed": asked[called:],
        "items": [item.type for item in whole.new_items],
        "outputs": [i.output for i in whole.new_items if i.type == "tool_call_output_item"],
        "answer": whole.final_output,
        "streamed": stream.final_output,
        "usage": counted(whole),
    }


async def output(url: str, model: str, kind: Any) -> Any:
    agent = Agent(
        name="guide",
        model=chosen(url, model, kind),
        output_type=River,
        model_settings=ModelSettings(temperature=0),
    )
    done = await Runner.run(agent, QUESTION)
    assert isinstance(done.final_output, River)
    return done.final_output.model_dump()


KINDS = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}


def bound(run: Any, kind: Any) -> Any:
    return lambda url, model: run(url, model, kind)


main(
    {"text_chat": bound(text, OpenAIChatCompletionsModel)}
    | {
        f"{run.__name__}_{name}": bound(run, kind)
        for run in (tools, output)
        for name, kind in KINDS.items()
    }
)
