"""Stands in for `twofour serve DIR`: paced tokens, and the answers that DIR/fake.json holds.

`python fake_twofour.py DIR PORT`
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn

from loadtests.fake_server import FakeServer, send_json, token_event, usage_event


class FakeTwofour(FakeServer):
    def __init__(self, directory: Path) -> None:
        self.answers = json.loads((directory / "fake.json").read_text())
        super().__init__(self.answers["gap_s"])
        self.generated = 0
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/health":
            await send_json(send, 200, {})
        elif scope["path"] == "/version":
            await send_json(send, 200, {"engine": self.answers["engine"]})
        elif scope["path"] == "/metrics":
            text = "".join(f"twofour:{k} {v}\n" for k, v in self._metrics().items()).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": text})
        else:
            await super().__call__(scope, receive, send)
            if self.requests == self.answers.get("exit_after"):
                os._exit(9)

    def _metrics(self) -> dict[str, int]:
        layers = {k: self.answers["engine"][k] for k in ("sparse_layers", "eligible_layers")}
        counted = {"generation_tokens_total": self.generated}
        return layers | counted | self.answers.get("metrics", {})

    # fake.json may hold "fault": number of a request -> what happens after its first token.
    async def events(self, body: Any, times: list[float]) -> AsyncIterator[bytes]:
        if self.answers.get("short"):
            yield token_event(body, " a", "stop")
            yield usage_event(1)
            yield b"data: [DONE]\n\n"
            return
        self.generated += body["max_tokens"]
        self.requests += 1
        fault = self.answers.get("fault", {}).get(str(self.requests))
        async for piece in super().events(body, times):
            yield piece
            if fault == "exit":
                os._exit(9)
            if fault == "stall":
                fault = None
                time.sleep(1.6)


if __name__ == "__main__":
    app = FakeTwofour(Path(sys.argv[1]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="critical", lifespan="off")
