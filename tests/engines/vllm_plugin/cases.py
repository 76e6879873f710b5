"""What the tests that run vLLM share: one model, its engine directories, and how answers agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.base import Engine, GenerationChunk, GenerationRequest
from engines.cpu.build import build as build_cpu
from engines.directory.build import BuildRequest
from engines.quantisation.options import BF16_VALUES, ValueOptions
from engines.reference.build import build as build_reference
from engines.sampling import SamplingParams
from engines.vllm_plugin import build as vllm_build
from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama

# Log-prob. vLLM computes in bf16, the reference in float32; with random weights that is far apart.
MARGIN = 0.15


def make_directories(
    folder: Path,
    *,
    leave_out: str = "",
    values: ValueOptions = BF16_VALUES,
    pattern: str = "2:4",
    **config: Any,
) -> dict[str, Path]:
    """A model of 8 query and 4 KV heads with masks, as `vllm` and as `reference` directories.

    `leave_out` names a kind of layer that stays dense, `config` overrides the model's. With int8 or
    int4 values the reference is one of the CPU engine, since what they stand for is another model.
    Both carry the masks `general` and `french`; the reference also `late`, whose file is there too.
    """
    model = make_tiny_llama(
        folder / "model",
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        initializer_range=0.1,
        **config,
    )
    masks = {
        name: random_mask(
            model,
            folder / f"{name}.safetensors",
            seed=seed,
            domain=name,
            leave_out=leave_out,
            pattern=pattern,
        )
        for seed, name in enumerate(("general", "french", "late"))
    }
    carried = {name: masks[name] for name in ("general", "french")}
    request = BuildRequest(model, "tiny", carried, folder / "vllm", values=values)
    vllm_build.build(request)
    build = build_reference if values.plain else build_cpu
    build(replace(request, masks=masks, out=folder / "reference"))
    return {
        "vllm": folder / "vllm",
        "reference": folder / "reference",
        "late": masks["late"],
    }


def prompt_of(seed: int, length: int = 40) -> tuple[int, ...]:
    """Random token ids that are no special tokens."""
    return tuple(int(t) for t in np.random.default_rng(seed).integers(3, 250, length))


async def run(engine: Engine, request: GenerationRequest) -> list[GenerationChunk]:
    """All chunks of a request."""
    return [chunk async for chunk in engine.generate(request)]


async def greedy(
    engine: Engine, key: str, prompt: tuple[int, ...], mask: str | None, tokens: int = 24
) -> list[GenerationChunk]:
    """The likeliest continuation, with log-probs."""
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=2)
    return await run(engine, GenerationRequest(key, prompt, sampling, mask=mask))


def tokens_of(chunks: list[GenerationChunk]) -> list[int]:
    """The generated token ids."""
    return [token for chunk in chunks for token in chunk.token_ids]


def assert_agree(
    ours: list[GenerationChunk], oracle: list[GenerationChunk], margin: float = MARGIN
) -> None:
    """Same tokens until the oracle's own choice is a toss-up; same log-probs until then."""
    mine = [lp for chunk in ours for lp in chunk.logprobs or ()]
    theirs = [lp for chunk in oracle for lp in chunk.logprobs or ()]
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        if a.token_id != b.token_id:
            assert b.top[0][1] - b.top[1][1] < margin
            return
        assert abs(a.logprob - b.logprob) < margin
