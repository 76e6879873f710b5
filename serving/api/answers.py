"""What the routes' answers have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel
from starlette.responses import Response

from engines.base import GenerationChunk
from serving.logprob_limit import INLINE_ROWS
from serving.schemas.common import ErrorBody

STATUSES = (400, 401, 404, 408, 409, 413, 429, 500, 503)

# For the OpenAPI description: every error has the same body.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": "Error"} for status in STATUSES
}

STREAMED: dict[int | str, dict[str, Any]] = ERRORS | {
    200: {
        "description": "The answer; with `stream: true` as server-sent events",
        "content": {"text/event-stream": {}},
    }
}


def json_response(body: BaseModel) -> Response:
    """A body as JSON. Fields that were never set are left out; null ones that were set stay."""
    return Response(body.model_dump_json(exclude_unset=True), media_type="application/json")


async def whole_response(build: Callable[[], BaseModel], logprob_rows: int) -> Response:
    """What `build` makes, as JSON; in a thread where others would wait for it."""
    if logprob_rows <= INLINE_ROWS:
        return json_response(build())
    return await asyncio.to_thread(lambda: json_response(build()))


def finish_reason(chunk: GenerationChunk | None) -> Literal["stop", "length"] | None:
    """Why a choice ended, once it has: its last chunk says so."""
    # Generations that end otherwise raise before their chunks come here.
    reason = chunk.finish_reason if chunk else None
    return reason if reason in ("stop", "length") else None
