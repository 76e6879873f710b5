"""smolagents: its ToolCallingAgent, which must call in every turn."""

from __future__ import annotations

from typing import Any, ClassVar

from scenario import QUESTION, REPORT, WEATHER_QUESTION, main
from smolagents import ChatMessage, OpenAIModel, Tool, ToolCallingAgent


class GetWeather(Tool):
    """The weather of a city."""

    name = "get_weather"
    description = "The weather of a city."
    inputs: ClassVar[dict[str, Any]] = {
        "city": {"type": "string", "description": "The city.", "enum": ["Oslo", "Paris", "Rome"]},
        "days": {"type": "integer", "description": "How many days.", "enum": [1, 2, 3]},
    }
    output_type = "string"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def forward(self, city: str, days: int) -> str:
        self.asked.append({"city": city, "days": days})
        return REPORT


def connect(url: str, model: str, **options: Any) -> OpenAIModel:
    return OpenAIModel(
        model_id=model,
        api_base=f"{url}/v1",
        api_key="none-needed",
        client_kwargs={"max_retries": 0},
        temperature=0,
        **options,
    )


def text(url: str, model: str) -> Any:
    chat = connect(url, model, max_tokens=24)
    asked = [ChatMessage(role="user", content=QUESTION)]
    whole = chat.generate(asked)
    deltas = list(chat.generate_stream(asked))
    usage = next(delta.token_usage for delta in reversed(deltas) if delta.token_usage)
    return {
        "text": whole.content,
        "usage": counted(whole.token_usage),
        "streamed": "".join(delta.content or "" for delta in deltas),
        "streamed_usage": counted(usage),
    }


def counted(usage: Any) -> Any:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
    }


def tools(url: str, model: str) -> Any:
    """The agent calls until its steps are used up or it calls `final_answer`, then says so."""
    weather = GetWeather()
    chat = connect(url, model, max_tokens=160)
    agent = ToolCallingAgent(tools=[weather], model=chat, max_steps=2, verbosity_level=0)
    answer = agent.run(WEATHER_QUESTION)
    steps = [step for step in agent.memory.steps if getattr(step, "tool_calls", None)]
    return {
        "asked": weather.asked,
        "calls": [
            {"name": call.name, "arguments": call.arguments}
            for step in steps
            for call in step.tool_calls
        ],
        "observations": [step.observations for step in steps],
        "answer": str(answer),
    }


main({"text": text, "tools": tools})
