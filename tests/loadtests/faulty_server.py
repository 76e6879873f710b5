"""A fake server whose behaviour the request's mask chooses, so that one run meets every fault."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

from loadtests.fake_server import FakeServer, event, send_json, token_event, usage_event

DONE = b"data: [DONE]\n\n"


class FaultyServer(FakeServer):
    """`model: "fake:FAULT"` misbehaves; anything else streams as `FakeServer` does."""

    async def _stream(self, scope: Any, body: Any, arrived: float, send: Any) -> None:
        fault = body["model"].partition(":")[2]
        if fault == "busy":
            error = {"message": "the queue is full", "type": "overloaded", "code": "429"}
            await send_json(send, 429, {"error": error})
        elif fault == "unchunked":
            payload = b"".join([piece async for piece in super().events(body, [arrived])])
            headers = [(b"content-length", str(len(payload)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": payload})
        else:
            await super()._stream(scope, body, arrived, send)

    async def events(self, body: Any, times: list[float]) -> AsyncIterator[bytes]:
        fault = body["model"].partition(":")[2]
        match fault:
            case "malformed":
                yield token_event(body, " a", None)
                yield b"data: {not json\n\n"
            case "error":
                yield token_event(body, " a", None)
                yield event({"error": {"message": "the engine died", "code": "500"}})
                yield DONE
            case "cut":
                yield token_event(body, " a", None)
                raise ConnectionAbortedError("the connection is cut here, on purpose")
            case "short":
                yield token_event(body, " a", "stop")
                yield usage_event(1)
                yield DONE
            case "uncounted":
                yield token_event(body, " a", "length")
                yield DONE
            case "endless":
                yield token_event(body, " a", "length")
                yield usage_event(body["max_tokens"])
            case "exit":
                yield token_event(body, " a", None)
                os._exit(3)
            case _:
                async for piece in super().events(body, times):
                    yield piece


if __name__ == "__main__":
    uvicorn.run(
        FaultyServer(gap_s=0.001),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="critical",
        lifespan="off",
    )
