"""Chat templates as small as they can be, with what each family is recognised by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from tests.serving.conftest import App, open_app
from tests.serving.fake_engine import FakeEngine

_TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{{ c.function | tojson }}{% endfor %}"
    "{% if m.tool_call_id %}ANSWERS {{ m.tool_call_id }}{% endif %}\n{% endfor %}<|assistant|>"
)
_TOOLS = "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
TEMPLATES = {
    "hermes": "{# <tool_call> #}" + _TOOLS + _TURNS,
    "llama3_json": "{# <|python_tag|> #}" + _TOOLS + _TURNS,
    "mistral": "{# [TOOL_CALLS] #}" + _TOOLS + _TURNS,
    "json": _TURNS,
}
SPECIAL = {"hermes": (), "llama3_json": ("<|python_tag|>",), "mistral": ("[TOOL_CALLS]",)}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 4},
                "days": {"type": "integer", "maximum": 9, "minimum": 0},
            },
            "required": ["city", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


@asynccontextmanager
async def open_family(directory: Path, family: str, **settings: Any) -> AsyncIterator[App]:
    """The app on a fake engine that speaks a family's template, with room for tools."""
    engine = FakeEngine(
        directory,
        template=TEMPLATES[family],
        special_tokens=SPECIAL.get(family, ()),
        context=4096,
    )
    async with open_app(directory, engine, **settings) as app:
        yield app


@asynccontextmanager
async def open_client(directory: Path, family: str, **settings: Any) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client on such an app."""
    async with open_family(directory, family, **settings) as app:
        app.client.base_url = "http://test"
        yield AsyncOpenAI(
            base_url="http://test/v1", api_key="any", max_retries=0, http_client=app.client
        )
