"""TensorRT-LLM's LLM API, imported when the first engine is opened; nothing else touches it.

Prompts and results are token ids: text, stop strings and chat templates are our own, so that every
engine treats them alike. Log-probs are computed from the logits that the API returns.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engines.decoding.sampler import Logits
from engines.errors import InvalidRequestError
from engines.sampling import SamplingParams
from engines.tensorrt_llm.version import ToolsMissingError, installed_version, version_problem

NO_TOKEN = -1
"""An end-of-sequence id that no token has."""


class Output(Protocol):
    """One sequence of a result, as far as it has come."""

    token_ids: list[int]
    finish_reason: str | None
    generation_logits: Any


class GenerationResult(Protocol):
    """A running request of the LLM API."""

    outputs: list[Output]
    context_logits: Any

    def __aiter__(self) -> AsyncIterator[GenerationResult]: ...
    def abort(self) -> None: ...


class Llm(Protocol):
    """One engine in memory."""

    def generate_async(
        self, inputs: list[int], sampling_params: Any, streaming: bool, cache_salt: str | None
    ) -> GenerationResult: ...
    def shutdown(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is put into memory.

    Attributes:
        kv_tokens: tokens that its KV cache holds.
        prompt_logits: whether it was built to return the logits of prompts. It then recomputes
            every prompt: a reused prefix has no logits.
    """

    kv_tokens: int
    prompt_logits: bool


def require_version() -> str:
    """The installed version of TensorRT-LLM.

    Raises:
        ToolsMissingError: none, or none that can load these engines.
    """
    version = installed_version()
    problem = version_problem(version)
    if problem is not None or version is None:
        raise ToolsMissingError(problem or "TensorRT-LLM is not installed")
    return version


def open_llm(directory: Path, options: EngineOptions) -> Llm:
    """Load `config.json` and `rankN.engine` of `directory` onto the GPUs."""
    require_version()
    from tensorrt_llm._tensorrt_engine import LLM
    from tensorrt_llm.llmapi import KvCacheConfig

    llm: Llm = LLM(
        model=str(directory),
        skip_tokenizer_init=True,
        gather_generation_logits=True,
        kv_cache_config=KvCacheConfig(
            max_tokens=options.kv_tokens, enable_block_reuse=not options.prompt_logits
        ),
    )
    return llm


def sampling_arguments(
    params: SamplingParams, eos_token_ids: tuple[int, ...], max_tokens: int
) -> dict[str, Any]:
    """Arguments of TensorRT-LLM's `SamplingParams` for one choice.

    Stop strings are left out, since they are looked for in our own text. TensorRT-LLM takes an
    unset seed for 0 and unset top-k and top-p for greedy decoding, so all three are always given.

    Raises:
        InvalidRequestError: the request needs what this engine cannot do.
    """
    if params.structured is not None:
        raise InvalidRequestError(
            "TensorRT-LLM engines are served without structured output", param="response_format"
        )
    eos = () if params.ignore_eos else eos_token_ids
    arguments: dict[str, Any] = {
        "max_tokens": max_tokens,
        "end_id": eos[0] if eos else NO_TOKEN,
        "pad_id": eos[0] if eos else NO_TOKEN,
        "stop_token_ids": [*eos[1:], *params.stop_token_ids] or None,
        "include_stop_str_in_output": True,
        "detokenize": False,
        "add_special_tokens": False,
        "min_tokens": params.min_tokens or None,
        "return_generation_logits": params.logprobs is not None,
        "return_context_logits": params.prompt_logprobs is not None,
    }
    if params.greedy:
        arguments["top_k"] = 1
    else:
        arguments |= {
            "temperature": params.temperature,
            "top_k": max(params.top_k, 0),
            "top_p": params.top_p,
            "min_p": params.min_p or None,
            "seed": secrets.randbits(63) if params.seed is None else params.seed % (1 << 63),
        }
    for name, neutral in (
        ("presence_penalty", 0.0),
        ("frequency_penalty", 0.0),
        ("repetition_penalty", 1.0),
    ):
        if getattr(params, name) != neutral:
            arguments[name] = getattr(params, name)
    return arguments


def start(
    llm: Llm,
    prompt: tuple[int, ...],
    params: SamplingParams,
    arguments: dict[str, Any],
    vocab_size: int,
    cache_salt: str,
) -> GenerationResult:
    """Submit one choice; must be called in the event loop.

    Logits come whole with the last result, so a request for log-probs is not streamed.
    """
    from tensorrt_llm import SamplingParams as LlmSamplingParams

    if params.logit_bias:
        import torch

        bias = torch.zeros(vocab_size, dtype=torch.float32)
        for token, value in params.logit_bias.items():
            bias[token] = value
        arguments = arguments | {"embedding_bias": bias}
    streaming = params.logprobs is None and params.prompt_logprobs is None
    return llm.generate_async(
        list(prompt),
        sampling_params=LlmSamplingParams(**arguments),
        streaming=streaming,
        cache_salt=cache_salt or None,
    )


def logits_array(tensor: Any, rows: int) -> Logits:
    """(rows, vocab) logits of a result as float32.

    Raises:
        ValueError: they are missing, or are not of so many positions.
    """
    if tensor is None:
        raise ValueError("TensorRT-LLM returned no logits")
    array: Logits = tensor.float().cpu().numpy().reshape(-1, tensor.shape[-1])
    if len(array) < rows:
        raise ValueError(f"TensorRT-LLM returned logits of {len(array)} positions, not of {rows}")
    return array[:rows]
