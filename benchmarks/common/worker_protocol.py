"""How an arm's process talks to the benchmark that started it (`benchmarks.common.arm_process`).

It says once that it is ready, then reads a JSON object {command: argument} a line from standard
input and answers each with one line on standard output, until standard input ends. Imports the
standard library alone, since it also runs in environments that have nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

ANSWER = "twofour-bench "
"""What answers begin with: libraries print lines of their own."""

Answer = Mapping[str, Any]


def answer(value: Answer) -> None:
    """Write one answer."""
    sys.stdout.write(ANSWER + json.dumps(value) + "\n")
    sys.stdout.flush()


def serve(commands: Mapping[str, Callable[[Any], Answer]]) -> None:
    """Answer commands until standard input ends."""
    for line in sys.stdin:
        ((name, argument),) = json.loads(line).items()
        answer(commands[name](argument))


async def serve_async(commands: Mapping[str, Callable[[Any], Awaitable[Answer]]]) -> None:
    """The same for commands that are coroutines; the event loop runs on between them."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        ((name, argument),) = json.loads(line).items()
        answer(await commands[name](argument))
