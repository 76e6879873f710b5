"""Checks that every engine makes before it accepts a request."""

from __future__ import annotations

import math
from collections.abc import Iterable

from engines.base import GenerationChunk, GenerationRequest, TokenLogprobs
from engines.errors import InvalidRequestError, PromptTooLongError


def check_request(request: GenerationRequest, vocab_size: int, context_length: int) -> None:
    """Raise InvalidRequestError unless a model of this size can run `request`."""
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not prompt:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    room = context_length if sampling.scores_only else context_length - 1
    if len(prompt) > room:
        generating = "" if sampling.scores_only else "with one token to generate, "
        raise PromptTooLongError(
            f"the prompt has {len(prompt)} tokens; {generating}at most {room} fit the context of"
            f" {context_length}",
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


def without_work(request: GenerationRequest) -> list[GenerationChunk]:
    """The whole answer to a request that leaves the model nothing to compute, else nothing.

    A first token has no log-probability, and without `prompt_logprobs` nothing is scored at all.
    """
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not sampling.scores_only or (len(prompt) > 1 and sampling.prompt_logprobs is not None):
        return []
    scores = None if sampling.prompt_logprobs is None else (None,)
    return [
        GenerationChunk(index, "", (), prompt_logprobs=scores, finish_reason="length")
        for index in range(sampling.n)
    ]


def scored(
    index: int, scores: Iterable[TokenLogprobs | None], cached_tokens: int = 0
) -> GenerationChunk:
    """The one chunk of a choice that only scores its prompt.

    Args:
        index: which choice.
        scores: of every prompt token; None for the first.
        cached_tokens: prompt tokens taken from the prefix cache.
    """
    found = tuple(scores)
    if not all(math.isfinite(entry.logprob) for entry in found if entry is not None):
        error = "the model's logits are not finite"
        return GenerationChunk(index, "", (), finish_reason="error", error=error)
    return GenerationChunk(
        index,
        "",
        (),
        prompt_logprobs=found,
        finish_reason="length",
        cached_tokens=cached_tokens,
    )


def token_limit(request: GenerationRequest, context_length: int) -> int:
    """Most tokens that one choice of `request` may generate; 0 if it only scores its prompt."""
    room = context_length - len(request.prompt_token_ids)
    wanted = request.sampling.max_tokens
    return room if wanted is None else min(wanted, room)


def stop_token_ids(request: GenerationRequest, eos_token_ids: tuple[int, ...]) -> frozenset[int]:
    """Token ids that end a choice of `request`."""
    eos = () if request.sampling.ignore_eos else eos_token_ids
    return frozenset(eos) | frozenset(request.sampling.stop_token_ids)
