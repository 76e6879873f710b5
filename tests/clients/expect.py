"""What tests say of a client's own objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema

from tests.clients.answers import read_answer
from tests.clients.conftest import Run

REPORT = "Sunny, 21 degrees."

RIVER = {
    "type": "object",
    "properties": {
        "country": {"enum": ["Austria", "France", "Italy"]},
        "length_km": {"type": "integer", "minimum": 1, "maximum": 9000},
        "navigable": {"type": "boolean"},
    },
    "required": ["country", "navigable"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Paris", "Rome"]},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city"],
    "additionalProperties": False,
}

_PROMPT = ("prompt_tokens", "input_tokens", "inputTokens")
_COMPLETION = ("completion_tokens", "output_tokens", "outputTokens")


def tokens(usage: dict[str, Any]) -> tuple[int, int]:
    """Prompt and completion tokens, whatever a client calls them."""
    (prompt,) = (usage[name] for name in _PROMPT if name in usage)
    (completion,) = (usage[name] for name in _COMPLETION if name in usage)
    return prompt, completion


def check_text(said: dict[str, Any], run: Run) -> None:
    """The streamed text is the other, and the client counts the tokens that the server told.

    That these are what `/tokenize` counts is checked of every answer.
    """
    assert said["text"]
    assert said["streamed"] == said["text"]
    told = [read_answer(one).usage for one in run.answered]
    assert tokens(said["usage"]) in told
    if "streamed_usage" in said:
        assert tokens(said["streamed_usage"]) == tokens(said["usage"])


def check_called(calls: Sequence[dict[str, Any]], *, name: str = "get_weather") -> None:
    """There is a call, and its arguments fit the schema; they may be JSON or parsed."""
    assert calls
    for call in calls:
        assert call["name"] == name
        given = call["arguments"]
        fits(json.loads(given) if isinstance(given, str) else given, WEATHER)


def fits(found: Any, schema: dict[str, Any] = RIVER) -> None:
    """An object is what the schema describes."""
    jsonschema.validate(found, schema)


def check_told_results(run: Run, calls: int) -> None:
    """A later request gave the model as many results of calls."""
    told = [
        sum(m.get("role") == "tool" or m.get("type") == "function_call_output" for m in messages)
        for one in run.answered
        if isinstance(messages := one.body.get("messages", one.body.get("input")), list)
    ]
    assert max(told, default=0) >= calls > 0
