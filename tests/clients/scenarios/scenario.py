"""What the scripts of the Python clients share: `python SCRIPT.py SCENARIO URL MODEL`.

A script runs in its client's environment, and prints what the client made of the answers as JSON.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

QUESTION = "Name three rivers of Europe."
WEATHER_QUESTION = "What is the weather in Oslo in celsius?"
REPORT = "Sunny, 21 degrees."

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Paris", "Rome"]},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}


def main(scenarios: dict[str, Callable[[str, str], Any]]) -> None:
    """Run the scenario that the command line names."""
    name, url, model = sys.argv[1:4]
    said = scenarios[name](url, model)
    if inspect.isawaitable(said):
        said = asyncio.run(_awaited(said))
    sys.stdout.write(json.dumps(said))


async def _awaited(said: Any) -> Any:
    return await said
