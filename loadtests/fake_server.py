"""A server that streams tokens at a known pace and remembers when it sent each.

Calibration compares what a load generator saw with what this server did; `time.perf_counter` is one
clock for all processes of a Linux machine. A bare ASGI application, so that it adds next to nothing
of its own. Run as `python -m loadtests.fake_server --port P`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

FAKE_MODEL = "fake"
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]


class FakeServer:
    """Answers both streaming endpoints, one token every `gap_s` seconds.

    `GET /sent` lists, by request id, when the request arrived and when each token was sent.
    """

    def __init__(self, gap_s: float) -> None:
        self.gap_s = gap_s
        self.sent: dict[str, list[float]] = {}

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        arrived = time.perf_counter()
        if scope["path"] == "/sent":
            await send_json(send, 200, self.sent)
        elif scope["path"] == "/v1/models":
            await send_json(send, 200, {"object": "list", "data": [{"id": FAKE_MODEL}]})
        else:
            await self._stream(scope, await _body(receive), arrived, send)

    async def _stream(
        self, scope: AsgiMessage, body: AsgiMessage, arrived: float, send: Send
    ) -> None:
        if not body.get("stream"):
            await send_json(send, 200, {"usage": {"prompt_tokens": prompt_tokens(body)}})
            return
        headers = dict(scope["headers"])
        times = self.sent.setdefault(headers[b"x-request-id"].decode(), [arrived])
        await start_stream(send)
        async for piece in self.events(body, times):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def events(self, body: AsgiMessage, times: list[float]) -> AsyncIterator[bytes]:
        """The stream of one request; appends to `times` when each token is sent."""
        tokens = int(body.get("max_tokens") or body["max_completion_tokens"])
        for number in range(tokens):
            await asyncio.sleep(times[0] + number * self.gap_s - time.perf_counter())
            text = token_event(body, f" t{number}", "length" if number == tokens - 1 else None)
            times.append(time.perf_counter())
            yield text
        yield usage_event(tokens, prompt_tokens(body))
        yield b"data: [DONE]\n\n"


def prompt_tokens(body: AsgiMessage) -> int:
    """A word is a token here, and one is added to every prompt."""
    text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    return len(text.split()) + 1


def token_event(body: AsgiMessage, text: str, finish_reason: str | None) -> bytes:
    """One chunk with text, as the endpoint that `body` was sent to has it."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
    choice |= {"delta": {"content": text}} if "messages" in body else {"text": text}
    return event({"id": "fake", "model": FAKE_MODEL, "choices": [choice], "usage": None})


def usage_event(completion_tokens: int, prompt_tokens: int = 7) -> bytes:
    """The chunk that `include_usage` asks for."""
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return event({"id": "fake", "model": FAKE_MODEL, "choices": [], "usage": usage})


def event(payload: Any) -> bytes:
    """A server-sent event with JSON data."""
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


async def start_stream(send: Send) -> None:
    """Status 200 and the headers of an event stream."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_json(send: Send, status: int, payload: Any) -> None:
    """A whole JSON response."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(payload).encode()})


async def _body(receive: Receive) -> AsgiMessage:
    parts = b""
    while True:
        message = await receive()
        parts += message.get("body", b"")
        if not message.get("more_body"):
            value: AsgiMessage = json.loads(parts)
            return value


def main() -> None:
    """Serve on the given port of the loopback interface until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gap-ms", type=float, default=30.0)
    options = parser.parse_args()
    app = FakeServer(options.gap_ms / 1e3)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        log_level="warning",
        access_log=False,
        lifespan="off",
    )


if __name__ == "__main__":
    main()
