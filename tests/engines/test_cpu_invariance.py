"""Invariant mode: token for token the same, whatever else happens to a request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.build import BuildRequest
from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.sampling import SamplingParams
from tests.engines.oracle import Answer, answers, many
from tests.tiny_model import SAMPLE_TEXT

GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=0)
SEEDED = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def directory(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("invariance") / "engine"
    masks = {name: mask_of(tiny_model, seed) for seed, name in enumerate(["general", "b", "c"])}
    build(BuildRequest(tiny_model, "tiny", masks, out))
    return out


def prompts_for(engine: CpuEngine) -> list[list[int]]:
    text = engine.codec.encode(SAMPLE_TEXT) * 2
    return [text[i * 7 : i * 7 + length] for i, length in enumerate([1, 5, 16, 33, 64, 100, 150])]


async def alone(
    directory: Path, params: SamplingParams, masks: list[str | None]
) -> tuple[list[list[int]], list[Answer]]:
    """Every request by itself, in one chunk: what all other ways must reproduce."""
    engine = CpuEngine(directory, kv_bytes=8 << 20, invariant=True, prefix_cache=False)
    prompts = prompts_for(engine)
    found = [
        (await answers(engine, prompt, params, mask=mask))[0]
        for prompt, mask in zip(prompts, masks, strict=True)
    ]
    await engine.close()
    return prompts, found


def assert_same(expected: list[Answer], found: list[Answer]) -> None:
    for one, other in zip(expected, found, strict=True):
        assert other.error is None
        assert other.token_ids == one.token_ids
        assert [p.logprob for p in other.logprobs] == [p.logprob for p in one.logprobs]
        assert other.text == one.text


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    "options",
    [
        {"step_tokens": 512},
        {"step_tokens": 64, "mixed_prefill_tokens": 10},
        {"step_tokens": 64, "mixed_prefill_tokens": 1, "max_sequences": 3},
        {"threads": 1},
        {"prefix_cache": False},
    ],
    ids=["batched", "chunked", "queued", "one-thread", "no-prefix-cache"],
)
async def test_batching_and_chunking(
    directory: Path, params: SamplingParams, options: dict[str, int]
) -> None:
    masks: list[str | None] = [None] * 7
    prompts, expected = await alone(directory, params, masks)
    engine = CpuEngine(directory, kv_bytes=8 << 20, invariant=True, **options)
    for _ in range(2):  # the second time, prefixes are found
        assert_same(expected, await many(engine, prompts, params, masks))
    await engine.close()


async def test_preemption(directory: Path) -> None:
    masks: list[str | None] = [None] * 7
    prompts, expected = await alone(directory, GREEDY, masks)
    # Room for 13 pages: the longest sequence (190 tokens) needs 12 of them.
    engine = CpuEngine(directory, kv_bytes=13 * 2 * 2 * 1024, invariant=True)
    assert engine.describe().context_length == 13 * 16
    found = await many(engine, prompts, GREEDY, masks)
    stats = engine.stats()
    await engine.close()
    assert stats.preemptions > 0
    assert stats.kv_used_share == 0.0
    assert_same(expected, found)


async def test_mixed_masks_arriving_at_random(directory: Path) -> None:
    masks: list[str | None] = ["general", "b", "c", None, "c", "b", "general"]
    prompts, expected = await alone(directory, GREEDY, masks)
    assert expected[3].token_ids != expected[4].token_ids
    rng = random.Random(5)
    engine = CpuEngine(directory, kv_bytes=1 << 20, invariant=True, max_sequences=5)

    async def later(i: int) -> Answer:
        await asyncio.sleep(rng.random() * 0.05)
        found = await answers(engine, prompts[i], GREEDY, request_id=str(i), mask=masks[i])
        return found[0]

    for _ in range(3):
        order = rng.sample(range(7), 7)
        found = dict(zip(order, await asyncio.gather(*map(later, order)), strict=True))
        assert_same(expected, [found[i] for i in range(7)])
    assert engine.stats().mask_switches > 0
    await engine.close()
