"""The vLLM engine beside the reference: same masks, same tokens. Needs vLLM (`make test-vllm`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from engines.base import Engine, GenerationRequest
from engines.errors import (
    InvalidRequestError,
    MaskError,
    PromptTooLongError,
    UnknownMaskError,
)
from engines.registry import open_engine
from engines.sampling import SamplingParams, StructuredOutput
from tests.engines.vllm_plugin.cases import (
    MARGIN,
    assert_agree,
    greedy,
    make_directories,
    prompt_of,
    run,
    tokens_of,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_directories(tmp_path_factory.mktemp("vllm"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(directories: dict[str, Path]) -> AsyncIterator[Engine]:
    engine = open_engine(
        directories["vllm"],
        enforce_eager=True,
        kv_cache_bytes=64 << 20,
        max_model_len=256,
        vllm_options={"block_size": 32},
    )
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reference(directories: dict[str, Path]) -> AsyncIterator[Engine]:
    engine = open_engine(directories["reference"])
    yield engine
    await engine.close()


@pytest.mark.parametrize("mask", [None, "general", "french"])
async def test_greedy_tokens_agree_with_the_reference(
    engine: Engine, reference: Engine, mask: str | None
) -> None:
    for seed in range(4):
        prompt = prompt_of(seed)
        ours = await greedy(engine, f"{mask}-{seed}", prompt, mask)
        assert_agree(ours, await greedy(reference, f"{mask}-{seed}", prompt, mask))


async def test_masks_of_concurrent_requests_do_not_mix(engine: Engine) -> None:
    alone = {
        (mask, seed): tokens_of(await greedy(engine, f"a-{mask}-{seed}", prompt_of(seed), mask))
        for mask in ("general", "french")
        for seed in range(3)
    }
    before = engine.stats().mask_switches
    together = await asyncio.gather(
        *(greedy(engine, f"t-{mask}-{seed}", prompt_of(seed), mask) for mask, seed in alone)
    )
    assert [tokens_of(chunks) for chunks in together] == list(alone.values())
    assert 1 <= engine.stats().mask_switches - before <= 2


async def test_prefix_cache_survives_a_switch_and_never_crosses_masks(engine: Engine) -> None:
    prompt = prompt_of(77, 100)
    first = await greedy(engine, "p1", prompt, "general", 4)
    other = await greedy(engine, "p2", prompt, "french", 4)
    again = await greedy(engine, "p3", prompt, "general", 4)
    assert first[0].cached_tokens == other[0].cached_tokens == 0
    assert again[0].cached_tokens >= 64
    assert tokens_of(again) == tokens_of(first)
    salted = GenerationRequest(
        "p4", prompt, SamplingParams(temperature=0, max_tokens=2), mask="general", cache_salt="x"
    )
    assert (await run(engine, salted))[0].cached_tokens == 0


async def test_a_mask_can_be_loaded_and_unloaded(
    engine: Engine, reference: Engine, directories: dict[str, Path]
) -> None:
    info = await engine.load_mask("late", directories["late"])
    assert info.name == "late"
    assert info.changed_share > 0.5
    ours = await greedy(engine, "late", prompt_of(5), "late")
    assert_agree(ours, await greedy(reference, "late", prompt_of(5), "late"))
    with pytest.raises(MaskError, match="loaded already"):
        await engine.load_mask("late", directories["late"])
    await engine.unload_mask("late")
    with pytest.raises(UnknownMaskError):
        await greedy(engine, "gone", prompt_of(5), "late")
    with pytest.raises(MaskError, match="default"):
        await engine.unload_mask("general")


async def test_prompt_logprobs_agree_with_the_reference(engine: Engine, reference: Engine) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    found: list[list[float]] = []
    for candidate in (engine, reference):
        found.append([])
        for seed in range(8):
            request = GenerationRequest(f"plp{seed}", prompt_of(seed), sampling, mask="french")
            logprobs = (await run(candidate, request))[0].prompt_logprobs
            assert logprobs is not None
            assert logprobs[0] is None
            found[-1] += [lp.logprob for lp in logprobs[1:] if lp is not None]
    assert len(found[0]) == len(found[1]) == 8 * 39
    # Rounding to bf16 moves single values either way; over many of them nothing may remain.
    assert np.allclose(found[0], found[1], rtol=0, atol=MARGIN)
    assert abs(np.mean(found[0]) - np.mean(found[1])) < 0.01


async def test_a_prompt_that_fills_the_context_is_scored(engine: Engine, reference: Engine) -> None:
    prompt = prompt_of(11, engine.describe().context_length)
    found = []
    for candidate in (engine, reference):
        sampling = SamplingParams(max_tokens=0, prompt_logprobs=2)
        request = GenerationRequest("full", prompt, sampling, mask="general")
        (chunk,) = await run(candidate, request)
        assert (chunk.text, chunk.token_ids, chunk.finish_reason) == ("", (), "length")
        assert chunk.prompt_logprobs is not None
        assert len(chunk.prompt_logprobs) == len(prompt)
        entries = [entry for entry in chunk.prompt_logprobs if entry is not None]
        assert [entry.token_id for entry in entries] == list(prompt[1:])
        assert all(len(entry.top) == 2 for entry in entries)
        found.append([entry.logprob for entry in entries])
    assert np.allclose(found[0], found[1], rtol=0, atol=MARGIN)
    # The last one comes by another way than the others.
    assert found[0][-1] == pytest.approx(found[1][-1], abs=MARGIN)
    with pytest.raises(PromptTooLongError):
        await run(engine, GenerationRequest("more", (*prompt, 5), sampling, mask="general"))


async def test_stop_strings_choices_and_seeds(engine: Engine) -> None:
    base = await greedy(engine, "s0", prompt_of(3), "general")
    text = "".join(chunk.text for chunk in base)
    stop = text[len(text) // 2 :][:3]
    sampling = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop=(stop,))
    cut = await run(engine, GenerationRequest("s1", prompt_of(3), sampling, mask="general"))
    assert "".join(c.text for c in cut) == text[: text.index(stop)]
    assert cut[-1].finish_reason == "stop"
    assert cut[-1].stop_reason == stop

    drawn = SamplingParams(n=3, temperature=1.0, seed=7, max_tokens=8, ignore_eos=True)
    runs = [
        await run(engine, GenerationRequest(f"s2-{i}", prompt_of(3), drawn, mask="general"))
        for i in range(2)
    ]
    by_choice = [
        {i: tokens_of([c for c in chunks if c.index == i]) for i in range(3)} for chunks in runs
    ]
    assert by_choice[0] == by_choice[1]
    assert len({tuple(t) for t in by_choice[0].values()}) > 1
    assert all(len(t) == 8 for t in by_choice[0].values())


async def test_structured_output(engine: Engine) -> None:
    choice = StructuredOutput("choice", '["river", "mill"]')
    sampling = SamplingParams(temperature=0, max_tokens=40, structured=choice)
    chunks = await run(engine, GenerationRequest("so", prompt_of(3), sampling))
    assert "".join(c.text for c in chunks) in ("river", "mill")
    assert chunks[-1].finish_reason == "stop"
    bad = SamplingParams(structured=StructuredOutput("regex", "(("))
    with pytest.raises(InvalidRequestError):
        await run(engine, GenerationRequest("so2", prompt_of(3), bad))


async def test_abort_and_closed_streams_free_the_engine(engine: Engine) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    stream = engine.generate(GenerationRequest("ab", prompt_of(3), sampling))
    await anext(stream)
    await engine.abort("ab")
    reasons = [chunk.finish_reason async for chunk in stream]
    assert reasons[-1] == "abort"
    stream = engine.generate(GenerationRequest("cl", prompt_of(3), sampling))
    await anext(stream)
    await stream.aclose()
    # Another mask's turn comes only when nothing of the former runs.
    await greedy(engine, "after", prompt_of(3), "french", 2)
    await greedy(engine, "after", prompt_of(3), "general", 2)
    assert engine.stats().running_masks == ()


async def test_impossible_requests_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError):
        await greedy(engine, "long", prompt_of(1, 256), None)
    with pytest.raises(UnknownMaskError):
        await greedy(engine, "who", prompt_of(1), "nobody")


async def test_description(engine: Engine) -> None:
    info = engine.describe()
    assert info.kind == "vllm"
    assert [m.name for m in info.masks] == ["general", "french"]
    assert info.sparse_layers == info.eligible_layers == 14
    assert all("sparse24" in kernel for kernel in info.kernels.values())
    assert info.context_length == 256
