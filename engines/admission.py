"""Checks that every engine makes before it accepts a request."""

from __future__ import annotations

from engines.base import GenerationRequest
from engines.errors import InvalidRequestError, PromptTooLongError


def check_request(request: GenerationRequest, vocab_size: int, context_length: int) -> None:
    """Raise InvalidRequestError unless a model of this size can run `request`."""
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not prompt:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    if len(prompt) >= context_length:
        raise PromptTooLongError(
            f"the prompt has {len(prompt)} tokens; with one token to generate,"
            f" at most {context_length - 1} fit the context of {context_length}",
            param="prompt",
        )
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        bad = next(t for t in prompt if not 0 <= t < vocab_size)
        raise InvalidRequestError(
            f"prompt token id {bad} is outside the vocabulary of {vocab_size}", param="prompt"
        )
    for name in ("logit_bias", "stop_token_ids"):
        for token in getattr(sampling, name):
            if not 0 <= token < vocab_size:
                raise InvalidRequestError(
                    f"{name} holds token id {token}, outside the vocabulary of {vocab_size}",
                    param=name,
                )


def token_limit(request: GenerationRequest, context_length: int) -> int:
    """Most tokens that one choice of `request` may generate."""
    room = context_length - len(request.prompt_token_ids)
    wanted = request.sampling.max_tokens
    return room if wanted is None else min(wanted, room)


def stop_token_ids(request: GenerationRequest, eos_token_ids: tuple[int, ...]) -> frozenset[int]:
    """Token ids that end a choice of `request`."""
    eos = () if request.sampling.ignore_eos else eos_token_ids
    return frozenset(eos) | frozenset(request.sampling.stop_token_ids)
