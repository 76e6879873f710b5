"""How many log-probs one request may ask for: each is computed, kept, and written as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engines.sampling import SamplingParams
from serving.errors import invalid

# Writing the log-probs of so many tokens takes a few milliseconds.
INLINE_ROWS = 256


def limit_logprobs(
    sampling: SamplingParams,
    prompts: Sequence[Sequence[int]],
    *,
    streamed: bool,
    context_length: int,
    limit: int,
    param: str,
) -> SamplingParams:
    """Refuse a request for more than `limit` log-probs, and end an answer of open length in time.

    Every token of a prompt, or of an answer, counts once for itself and once for each alternative,
    in every choice. A stream's answer does not count: it is sent as it is made.

    Args:
        sampling: what is asked for.
        prompts: token ids of each prompt.
        streamed: whether the answer is a stream.
        context_length: most tokens of one sequence.
        limit: the server's setting `max_logprob_entries`.
        param: the field to name.

    Returns:
        The parameters, with a `max_tokens` where the answer could have passed the limit.

    Raises:
        ApiError: 400; more than `limit`.
    """
    scored, per_token = 0, 0
    if sampling.prompt_logprobs is not None:
        scored = sum(map(len, prompts)) * sampling.n * (sampling.prompt_logprobs + 1)
    if sampling.logprobs is not None and not streamed:
        per_token = len(prompts) * sampling.n * (sampling.logprobs + 1)
    tokens = sampling.max_tokens
    if tokens is None:
        tokens = context_length - max(map(len, prompts))
        if per_token and scored + per_token <= limit < scored + per_token * tokens:
            tokens = (limit - scored) // per_token
            sampling = replace(sampling, max_tokens=tokens)
    entries = scored + per_token * tokens
    if entries > limit:
        raise invalid(
            f"{param}: tokens times choices times alternatives make {entries} log-probs, above this"
            f" server's limit of {limit} (max_logprob_entries); ask for fewer alternatives, choices"
            " or tokens",
            param,
        )
    return sampling
