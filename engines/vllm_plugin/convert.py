"""Between twofour's requests and chunks and vLLM's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm import SamplingParams as VllmSamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from engines.base import TokenLogprobs
from engines.decoding.json_schema import prepared_schema
from engines.sampling import SamplingParams, StructuredOutput


def sampling_params(
    params: SamplingParams, max_tokens: int, stop_token_ids: frozenset[int]
) -> VllmSamplingParams:
    """One choice's parameters for vLLM.

    Text, stop strings and the reason of the end are twofour's business
    (`engines.decoding.output_text`), so vLLM gets token ids only and streams each token
    as it comes.
    """
    return VllmSamplingParams(
        n=1,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=max(params.top_k, 0),
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=dict(params.logit_bias) or None,
        seed=params.seed,
        stop_token_ids=sorted(stop_token_ids),
        ignore_eos=True,  # the end-of-sequence tokens are among stop_token_ids unless ignored
        min_tokens=params.min_tokens,
        max_tokens=max_tokens,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=_structured(params.structured),
    )


def scoring_params(last: int, alternatives: int) -> VllmSamplingParams:
    """Parameters that score a prompt, given all of it but its token `last`.

    vLLM always generates, and refuses a prompt that fills the context. So it generates the last
    token, as the only one allowed: log-probs are of the logits before that restriction.
    """
    return VllmSamplingParams(
        n=1,
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        allowed_token_ids=[last],
        logprobs=alternatives,
        prompt_logprobs=alternatives,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def cache_salt(mask_digest: str | None, salt: str) -> str:
    """Root of a request's prefix-cache entries: entries of different masks never meet.

    With it the entries of a mask survive a switch to another one and back.
    """
    return hashlib.sha256(json.dumps([mask_digest, salt]).encode()).hexdigest()


def token_logprobs(entry: Mapping[int, Any], token_id: int, top: int) -> TokenLogprobs:
    """One position of vLLM's log-probs: token id -> (logprob, rank), the chosen one among them."""
    chosen = entry[token_id]
    best = sorted((v.rank, token, v.logprob) for token, v in entry.items() if v.rank <= top)
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(chosen.logprob),
        rank=int(chosen.rank),
        top=tuple((token, float(logprob)) for _, token, logprob in best),
    )


def prompt_token_logprobs(
    entries: Sequence[Mapping[int, Any] | None], prompt: Sequence[int], top: int
) -> tuple[TokenLogprobs | None, ...]:
    """vLLM's prompt log-probs; the first position has none."""
    return tuple(
        None if entry is None else token_logprobs(entry, token, top)
        for entry, token in zip(entries, prompt, strict=True)
    )


def _structured(value: StructuredOutput | None) -> StructuredOutputsParams | None:
    if value is None:
        return None
    fixed = not value.any_whitespace
    if value.kind == "json_schema":
        schema = prepared_schema(value.value, any_whitespace=value.any_whitespace)
        return StructuredOutputsParams(json=schema, disable_any_whitespace=fixed)
    if value.kind == "json_object":
        return StructuredOutputsParams(json_object=True, disable_any_whitespace=fixed)
    if value.kind == "regex":
        return StructuredOutputsParams(regex=value.value)
    if value.kind == "lark":
        return StructuredOutputsParams(grammar=value.value)
    return StructuredOutputsParams(choice=json.loads(value.value))
