"""Requests that score a prompt and generate nothing, on every engine that runs here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.base import Engine, GenerationChunk, GenerationRequest, TokenLogprobs
from engines.cpu.build import build as build_cpu
from engines.cpu.model import PAGE_POSITIONS
from engines.directory.build import BuildRequest
from engines.errors import PromptTooLongError
from engines.native import _native
from engines.reference.build import build as build_reference
from engines.registry import open_engine
from engines.sampling import SamplingParams
from tests.engines.conftest import random_mask
from tests.engines.oracle import Oracle
from tests.tiny_model import make_tiny_llama

CONTEXT = 64
SCORES = SamplingParams(max_tokens=0, prompt_logprobs=2)
# One context is all that the cache holds, and several steps are needed for it.
CPU_OPTIONS = {
    "kv_bytes": CONTEXT // PAGE_POSITIONS * _native.page_bytes(2, 2, 16),
    "max_sequences": 4,
    "step_tokens": 24,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model/`, `mask.safetensors`, and an engine directory of each kind."""
    folder = tmp_path_factory.mktemp("scoring")
    model = make_tiny_llama(folder / "model", max_position_embeddings=CONTEXT)
    mask = random_mask(model, folder / "mask.safetensors")
    request = BuildRequest(model, "tiny", {"general": mask}, folder / "cpu")
    build_cpu(request)
    build_reference(replace(request, out=folder / "reference"))
    return folder


@pytest.fixture(params=["cpu", "reference"])
async def engine(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Engine]:
    options = CPU_OPTIONS if request.param == "cpu" else {}
    engine = open_engine(folder / request.param, **options)
    assert engine.describe().context_length == CONTEXT
    yield engine
    await engine.close()


def prompt_of(length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(length).integers(3, 290, length).tolist())


async def chunks_of(
    engine: Engine, prompt: Sequence[int], sampling: SamplingParams, name: str = "r"
) -> list[GenerationChunk]:
    request = GenerationRequest(name, tuple(prompt), sampling)
    return [chunk async for chunk in engine.generate(request)]


def logprobs_of(scores: Sequence[TokenLogprobs | None] | None) -> list[float]:
    assert scores is not None
    assert scores[0] is None
    return [entry.logprob for entry in scores[1:] if entry is not None]


@pytest.mark.parametrize("length", [2, 17, 25, CONTEXT - 1, CONTEXT])
async def test_scores_are_those_of_torch(engine: Engine, folder: Path, length: int) -> None:
    prompt = prompt_of(length)
    (chunk,) = await chunks_of(engine, prompt, SCORES)
    assert (chunk.text, chunk.token_ids, chunk.finish_reason) == ("", (), "length")
    rows = Oracle(folder / "model", folder / "mask.safetensors").log_probs(prompt)
    found = logprobs_of(chunk.prompt_logprobs)
    expected = [rows[i, prompt[i + 1]] for i in range(length - 1)]
    # The CPU engine computes in bf16.
    tolerance = 1e-4 if engine.describe().kind == "reference" else 0.4
    assert found == pytest.approx(expected, abs=tolerance)
    assert np.mean(np.subtract(found, expected)) == pytest.approx(0, abs=tolerance / 4)
    for token, entry in zip(prompt[1:], chunk.prompt_logprobs[1:], strict=True):
        assert entry.token_id == token
        assert len(entry.top) == 2
    assert engine.stats().generation_tokens == 0


async def test_a_longer_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(PromptTooLongError, match=f"has {CONTEXT + 1} tokens; at most {CONTEXT}"):
        await chunks_of(engine, prompt_of(CONTEXT + 1), SCORES)
    for sampling in (SamplingParams(), SamplingParams(max_tokens=1, prompt_logprobs=0)):
        with pytest.raises(
            PromptTooLongError, match=f"one token to generate, at most {CONTEXT - 1}"
        ):
            await chunks_of(engine, prompt_of(CONTEXT), sampling)


async def test_what_needs_no_computation(engine: Engine) -> None:
    (chunk,) = await chunks_of(engine, prompt_of(1), SCORES)
    assert (chunk.prompt_logprobs, chunk.finish_reason) == ((None,), "length")
    for length in (1, 33, CONTEXT):
        found = await chunks_of(engine, prompt_of(length), SamplingParams(max_tokens=0, n=2))
        assert [c.index for c in found] == [0, 1]
        assert {(c.prompt_logprobs, c.finish_reason) for c in found} == {(None, "length")}
    assert engine.stats().steps == 0


async def test_scoring_and_generating_at_once(engine: Engine) -> None:
    """Together they need more than the cache holds, so that sequences wait and are preempted."""
    prompt = prompt_of(40)
    (alone,) = await chunks_of(engine, prompt, SCORES)
    generate = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    expected = await chunks_of(engine, prompt_of(20), generate)
    runs = [
        chunks_of(engine, prompt_of(20), generate, "a"),
        chunks_of(engine, prompt, replace(SCORES, n=3), "b"),
        chunks_of(engine, prompt, SCORES, "c"),
    ]
    generated, *scored = await asyncio.gather(*runs)
    assert [c.token_ids for c in generated] == [c.token_ids for c in expected]
    assert sorted(c.index for c in scored[0]) == [0, 1, 2]
    for chunk in (*scored[0], *scored[1]):
        assert logprobs_of(chunk.prompt_logprobs) == pytest.approx(
            logprobs_of(alone.prompt_logprobs), abs=1e-3
        )
    assert engine.stats().running == 0
