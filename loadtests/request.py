"""The body and headers of one request of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from loadtests.options import LoadSettings
from loadtests.prompts import LoadPrompt, salt, salted

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request ready to send: built before the clock starts."""

    request_id: str
    endpoint: str
    model: str
    mask: str | None
    prompt_id: str
    body: bytes
    headers: dict[str, str]


def prepare(
    settings: LoadSettings, base_model: str, endpoint: str, index: int, run_id: str
) -> PreparedRequest:
    """Request `index` of a run; everything but `run_id` follows from the settings' seed.

    Fixed output length by `ignore_eos` and a token limit, greedy unless told otherwise, streamed
    with usage.
    """
    prompt = settings.prompts[index % len(settings.prompts)]
    mask = settings.mask_mix.choose(settings.seed, index) if settings.mask_mix else None
    model = f"{base_model}:{mask}" if mask else base_model
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": settings.temperature,
        "ignore_eos": True,
    }
    if settings.salt in ("cache_salt", "both"):
        body["cache_salt"] = salt(settings.seed, index)
    text = _text(settings, prompt, index)
    if endpoint == CHAT:
        body["messages"] = [{"role": "user", "content": text}]
        body["max_completion_tokens"] = settings.max_tokens
    else:
        body["prompt"] = text
        body["max_tokens"] = settings.max_tokens
    request_id = f"{run_id}-{index}"
    headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    return PreparedRequest(
        request_id, endpoint, model, mask, prompt.id, json.dumps(body).encode(), headers
    )


def _text(settings: LoadSettings, prompt: LoadPrompt, index: int) -> str:
    if settings.salt in ("prompt", "both"):
        return salted(prompt, settings.seed, index)
    return prompt.text
