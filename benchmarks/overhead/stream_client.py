"""Streamed completions over connections that are open before the clock starts.

What a client takes of the CPU is missing to a server on the same machine, so events are counted in
what arrives and nothing is parsed while time is taken; `check` reads it all afterwards.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import h11

_EVENT = b"data: {"
_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
_PATH = "/v1/completions"


class StreamError(RuntimeError):
    """An answer is no complete stream of tokens."""


class StreamConnection(asyncio.Protocol):
    """One connection, for one streamed request."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._counted = 0
        self._news = asyncio.Event()
        self._closed = False
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        """Connect."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._received += data
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed it."""
        self._closed = True
        self._news.set()

    async def events(self, request: bytes) -> AsyncIterator[int]:
        """Send a request; how many events came at a time, until the answer has ended."""
        assert self._transport is not None
        self._transport.write(request)
        ended = False
        while not ended:
            await self._news.wait()
            self._news.clear()
            ended = self._closed or self._received.endswith(_END)
            if new := self._new_events():
                yield new

    def _new_events(self) -> int:
        new = self._received.count(_EVENT, self._counted)
        if new:
            self._counted = self._received.rfind(_EVENT) + len(_EVENT)
        return new

    def check(self, tokens: int) -> None:
        """Read the answer.

        Raises:
            StreamError: it is no success, broke off, or has another number of events than tokens.
        """
        status, body = _parse(bytes(self._received))
        if status != 200:
            raise StreamError(
                f"the server answered {status}: {body[:500].decode(errors='replace')}"
            )
        *events, done = body.decode().removesuffix("\n\n").split("\n\n")
        if done != "data: [DONE]":
            raise StreamError(f"the stream ended with {done[:500]!r}")
        # Comment lines keep a connection alive while the engine is silent.
        chunks = [json.loads(e.removeprefix("data: ")) for e in events if not e.startswith(":")]
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        if reasons != [None] * (tokens - 1) + ["length"]:
            raise StreamError(f"{len(chunks)} events came for {tokens} tokens")

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()


def completion_request(host: str, prompt: Sequence[int], tokens: int) -> bytes:
    """A greedy request for exactly so many tokens, as it goes over the wire."""
    body = json.dumps(
        {
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    head = f"POST {_PATH} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _parse(received: bytes) -> tuple[int, bytes]:
    """Status and body of an answer that has come in whole."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="POST", target=_PATH, headers=[("host", "any")]))
    client.send(h11.EndOfMessage())
    client.receive_data(received)
    status, body = 0, b""
    while True:
        event: Any = client.next_event()
        if event is h11.NEED_DATA:
            raise StreamError(f"the connection ended in mid-answer: {received[-200:]!r}")
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, body
