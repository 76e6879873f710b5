"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.errors import ApiError, ClientGoneError, as_api_error
from serving.event_frame import dump
from serving.generation import Generation, PromptChunk
from serving.logprob_limit import INLINE_ROWS

logger = logging.getLogger("serving")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class ChunkFormat(Protocol):
    """Turns chunks of the engine into the events of one API."""

    def opening(self) -> Sequence[BaseModel]:
        """Events before the first token."""

    def events(self, piece: PromptChunk) -> Sequence[BaseModel | bytes]:
        """The events for one chunk, some as JSON; none when it adds nothing that shows."""

    def closing(self) -> Sequence[BaseModel]:
        """Events after the last token."""

    def failure(self, error: ApiError) -> BaseModel | None:
        """The event of a failure after the first one; None: the error's own body."""


class EventStream(Response):
    """Streams a generation.

    Nothing is sent before the engine has taken the request, so that a refusal still is a proper
    status code; a failure later is an event that carries an error, and the stream ends with it.
    While the engine is silent, comment lines keep proxies from closing the connection.

    Args:
        generation: not started yet.
        chunks: the API's events.
        keep_alive_interval: seconds of silence before a comment line.
        named: events have their `type` as name, and no `[DONE]` follows the last (Responses API).
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        chunks: ChunkFormat,
        keep_alive_interval: float,
        *,
        named: bool = False,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._generation = generation
        self._chunks = chunks
        self._interval = keep_alive_interval
        self._named = named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation as generation:
            generation.remind(self._interval)
            batch = await generation.next_batch()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await _write(send, self._encoded(self._chunks.opening()))
                while batch is not None:
                    await _write(send, await self._encode(batch))
                    batch = await generation.next_batch()
                tail = self._encoded(self._chunks.closing()) + (b"" if self._named else DONE)
            except ClientGoneError:
                return
            except Exception as error:
                if not isinstance(error, ApiError):
                    logger.exception("request %s failed", scope["state"]["request_id"])
                tail = self._failed(as_api_error(error))
            await send({"type": "http.response.body", "body": tail, "more_body": False})

    async def _encode(self, batch: list[PromptChunk]) -> bytes:
        if not batch:
            return KEEP_ALIVE
        if sum(len(piece.chunk.prompt_logprobs or ()) for piece in batch) > INLINE_ROWS:
            return await asyncio.to_thread(self._events, batch)
        return self._events(batch)

    def _events(self, batch: list[PromptChunk]) -> bytes:
        return b"".join(self._encoded(self._chunks.events(piece)) for piece in batch)

    def _failed(self, error: ApiError) -> bytes:
        event = self._chunks.failure(error)
        return _data(json.dumps(error.body()).encode()) if event is None else self._encoded([event])

    def _encoded(self, events: Sequence[BaseModel | bytes]) -> bytes:
        if not self._named:
            return b"".join(_data(e if isinstance(e, bytes) else dump(e)) for e in events)
        return b"".join(
            f"event: {e.type}\n".encode() + _data(e.model_dump_json().encode())  # type: ignore[union-attr]
            for e in events
        )


async def _write(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _data(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"
