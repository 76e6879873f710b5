"""LlamaIndex's OpenAILike: chat, completion, streams, function calling, structured output."""

from typing import Annotated, Any, Literal

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field
from scenario import QUESTION, REPORT, WEATHER_QUESTION, main


class River(BaseModel):
    """A river."""

    country: Literal["Austria", "France", "Italy"]
    length_km: Annotated[int, Field(ge=1, le=9000)]
    navigable: bool


def connect(url: str, model: str, **options: Any) -> OpenAILike:
    options = {"max_tokens": 24, "is_chat_model": True, **options}
    return OpenAILike(
        model=model,
        api_base=f"{url}/v1",
        api_key="none-needed",
        temperature=0,
        max_retries=0,
        context_window=8192,
        is_function_calling_model=True,
        **options,
    )


def get_weather(
    city: Literal["Oslo", "Paris", "Rome"], unit: Literal["celsius", "fahrenheit"]
) -> str:
    """The weather of a city."""
    return f"{REPORT} ({city}, {unit})"


def text(url: str, model: str) -> Any:
    asked = [ChatMessage(role="user", content=QUESTION)]
    chat = connect(url, model)
    whole = chat.chat(asked)
    *_, last = chat.stream_chat(asked)
    plain = connect(url, model, is_chat_model=False)
    continued = plain.complete("The river")
    *_, streamed = plain.stream_complete("The river")
    return {
        "text": whole.message.content,
        "usage": whole.raw.usage.model_dump(),
        "streamed": last.message.content,
        "continued": continued.text,
        "continued_streamed": streamed.text,
    }


def tools(url: str, model: str) -> Any:
    chat = connect(url, model, max_tokens=96)
    tool = FunctionTool.from_defaults(get_weather)
    asked = [ChatMessage(role="user", content=WEATHER_QUESTION)]
    called = chat.chat_with_tools([tool], chat_history=asked, tool_required=True)
    *_, streamed = chat.stream_chat_with_tools([tool], chat_history=asked, tool_required=True)
    calls = chat.get_tool_calls_from_response(called)
    results = [
        ChatMessage(
            role="tool",
            content=str(tool(**call.tool_kwargs)),
            additional_kwargs={"tool_call_id": call.tool_id},
        )
        for call in calls
    ]
    last = chat.chat_with_tools([tool], chat_history=[*asked, called.message, *results])
    return {
        "calls": shown(calls),
        "streamed": shown(chat.get_tool_calls_from_response(streamed)),
        "results": [result.content for result in results],
        "answer": last.message.content,
    }


def shown(calls: Any) -> Any:
    return [{"name": call.tool_name, "arguments": call.tool_kwargs} for call in calls]


def structured(url: str, model: str) -> Any:
    found = {}
    for name, enforced in {"schema": True, "function": False}.items():
        chat = connect(url, model, max_tokens=96, should_use_structured_outputs=enforced)
        shaped = chat.as_structured_llm(River)
        found[name] = shaped.chat([ChatMessage(role="user", content=QUESTION)]).raw.model_dump()
    return found


main({"text": text, "tools": tools, "structured": structured})
