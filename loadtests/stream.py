"""Reads one streamed completion and notes when every token arrived.

The lines must come from a reader that hands each over as soon as its bytes arrive: `requests`'
`iter_lines` over a chunked response does, Locust's `FastHttpUser` does not (it fills blocks of 1024
bytes first). `loadtests.client_calibration` measures it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


class StreamError(Exception):
    """The stream broke the protocol or carried an error."""


@dataclass(slots=True)
class StreamRecord:
    """What a stream said and when; filled while it is read, so that a broken one keeps its start.

    Attributes:
        token_times: clock at each chunk with new text, in order.
        end_time: clock at the last chunk that belongs to a choice (text or finish reason).
        finish_reason: of the choice, once it has one.
        prompt_tokens, completion_tokens, cached_tokens: from `usage`; None while unknown.
    """

    token_times: list[float] = field(default_factory=list)
    end_time: float | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


def read_stream(
    lines: Iterable[bytes], record: StreamRecord, clock: Callable[[], float]
) -> StreamRecord:
    """Read server-sent events up to `[DONE]` and the end of the body.

    Raises:
        StreamError: an event that is not a completion chunk, an error event, no `[DONE]`, data
            after it, or no `usage`.
    """
    done = False
    for line in lines:
        now = clock()
        if not line or line.startswith(b":"):
            continue  # between events, or a keep-alive comment
        name, _, value = line.partition(b":")
        if name != b"data":
            continue
        payload = value.strip()
        if done:
            raise StreamError(f"data after [DONE]: {_excerpt(payload)}")
        if payload == b"[DONE]":
            done = True
            continue
        _take_chunk(payload, record, now)
    if not done:
        raise StreamError("the stream ended without [DONE]")
    if record.completion_tokens is None:
        raise StreamError("the stream carried no usage, though include_usage was asked for")
    return record


def _take_chunk(payload: bytes, record: StreamRecord, now: float) -> None:
    try:
        chunk = json.loads(payload)
    except ValueError as error:
        raise StreamError(f"chunk is not JSON: {_excerpt(payload)}") from error
    if not isinstance(chunk, dict):
        raise StreamError(f"chunk is not an object: {_excerpt(payload)}")
    if "error" in chunk:
        raise StreamError(f"server error in the stream: {_message(chunk['error'])}")
    try:
        _take_choices(chunk["choices"], record, now)
        if chunk.get("usage") is not None:
            _take_usage(chunk["usage"], record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StreamError(f"not a completion chunk: {_excerpt(payload)}") from error


def _take_choices(choices: list[dict[str, Any]], record: StreamRecord, now: float) -> None:
    for choice in choices:
        text = choice["text"] if "text" in choice else choice["delta"].get("content")
        if text:
            record.token_times.append(now)
        if choice.get("finish_reason"):
            record.finish_reason = str(choice["finish_reason"])
        if text or choice.get("finish_reason"):
            record.end_time = now


def _take_usage(usage: dict[str, Any], record: StreamRecord) -> None:
    record.prompt_tokens = int(usage["prompt_tokens"])
    record.completion_tokens = int(usage["completion_tokens"])
    details = usage.get("prompt_tokens_details") or {}
    record.cached_tokens = int(details.get("cached_tokens") or 0)


def _message(error: Any) -> str:
    text = error.get("message", error) if isinstance(error, dict) else error
    return str(text)[:200]


def _excerpt(payload: bytes) -> str:
    return repr(payload[:120])
