"""The body and headers of one request of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from loadtests.options import LoadSettings
from loadtests.prompt_source import PromptSource
from loadtests.prompts import salt

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request ready to send: built before the clock starts.

    `prompt_tokens` is what the server must count, None where any number will do.
    """

    request_id: str
    endpoint: str
    model: str
    mask: str | None
    prompt_id: str
    max_tokens: int
    prompt_tokens: int | None
    body: bytes
    headers: dict[str, str]


def prepare(
    settings: LoadSettings,
    source: PromptSource,
    base_model: str,
    endpoint: str,
    index: int,
    run_id: str,
) -> PreparedRequest:
    """Request `index` of a run; everything but `run_id` follows from the settings' seed.

    Fixed output length by `ignore_eos` and a token limit, greedy unless told otherwise, streamed
    with usage.
    """
    mask = settings.mask_mix.choose(settings.seed, index) if settings.mask_mix else None
    prompt = source.prompt(index, mask)
    model = f"{base_model}:{mask}" if mask else base_model
    max_tokens = prompt.max_tokens or settings.max_tokens
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": settings.temperature,
        "ignore_eos": True,
    } | text_fields(endpoint, prompt.text, max_tokens)
    if settings.salt in ("cache_salt", "both"):
        body["cache_salt"] = salt(settings.seed, index)
    request_id = f"{run_id}-{index}"
    return PreparedRequest(
        request_id,
        endpoint,
        model,
        mask,
        prompt.id,
        max_tokens,
        prompt.prompt_tokens,
        json.dumps(body).encode(),
        request_headers(settings.api_key) | {"X-Request-Id": request_id},
    )


def text_fields(endpoint: str, text: str, max_tokens: int) -> dict[str, Any]:
    """The fields of a body in which the two endpoints differ."""
    if endpoint == CHAT:
        message = {"role": "user", "content": text}
        return {"messages": [message], "max_completion_tokens": max_tokens}
    return {"prompt": text, "max_tokens": max_tokens}


def request_headers(api_key: str | None) -> dict[str, str]:
    """Headers that every request has."""
    bearer = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"Content-Type": "application/json"} | bearer
