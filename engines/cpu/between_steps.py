"""Work on the engine's thread between two steps, awaited on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

Call = Callable[[Callable[[], None]], None]
"""Runs something on the engine's thread, between two steps."""

_T = TypeVar("_T")


async def between_steps(call: Call, work: Callable[[], _T]) -> _T:
    """Do `work` on the engine's thread and wait for what it returns."""
    events = asyncio.get_running_loop()
    done: asyncio.Future[_T] = events.create_future()

    def settle(found: _T | Exception) -> None:
        if done.done():  # nobody waits any more
            return
        if isinstance(found, Exception):
            done.set_exception(found)
        else:
            done.set_result(found)

    def run() -> None:
        found: _T | Exception
        try:
            found = work()
        except Exception as error:
            found = error
        events.call_soon_threadsafe(settle, found)

    call(run)
    return await done
