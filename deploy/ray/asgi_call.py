"""Calls an ASGI application in this process and streams what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

_AHEAD = 16
"""Pieces of an answer that may wait for their reader."""


@dataclass(frozen=True)
class HttpCall:
    """A request, whole, as it travels to a replica.

    Attributes:
        method: such as `POST`.
        path: decoded.
        query: as it was sent.
        headers: names in lower case.
        body: all of it.
    """

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True)
class HttpStart:
    """The status line and headers of an answer, which precede its pieces."""

    status: int
    headers: list[tuple[bytes, bytes]]


async def answer(app: ASGIApp, call: HttpCall) -> AsyncIterator[HttpStart | bytes]:
    """The start of the answer, then its pieces as the application sends them.

    Closing the iterator is the client's hanging up: the application is told, and ended.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue(_AHEAD)
    gone = asyncio.Event()
    unread = [{"type": "http.request", "body": call.body, "more_body": False}]

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_scope(call), receive, messages.put)
        finally:
            await messages.put(None)

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                yield HttpStart(message["status"], list(message["headers"]))
            elif message.get("body"):
                yield message["body"]
        await task
    finally:
        gone.set()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _scope(call: HttpCall) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode(),
        "query_string": call.query,
        "root_path": "",
        "headers": call.headers,
        "client": None,
        "server": None,
    }
