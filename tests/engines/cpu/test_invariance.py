"""Invariant mode: token for token the same, whatever else happens to a request."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.sampling import SamplingParams
from tests.engines.conftest import VALUES, nearby_mask
from tests.engines.oracle import Answer, answers, many
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=0)
SEEDED = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose first layer has experts and whose second has none."""
    return make_tiny_llama(
        tmp_path_factory.mktemp("experts") / "qwen3_moe",
        architecture="qwen3_moe",
        head_dim=16,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=96,
        mlp_only_layers=[1],
    )


@pytest.fixture(scope="module", params=[*VALUES, "experts-bf16", "experts-int4"])
def directory(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    experts: Path,
    mask_of: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("invariance")
    out = folder / "engine"
    model = experts if request.param.startswith("experts") else tiny_model
    general = mask_of(model)
    masks = {
        "general": general,
        "copy": mask_of(model, 1),
        "other-copy": mask_of(model, 2),
    }
    for seed, name in enumerate(("patch", "other-patch")):
        masks[name] = nearby_mask(general, folder / f"{name}.safetensors", 0.03, seed)
    values = VALUES[request.param.removeprefix("experts-")]
    build(BuildRequest(model, "tiny", masks, out, values=values))
    return out


def engine_for(directory: Path, **options: Any) -> CpuEngine:
    """In invariant mode, with masks of all three kinds."""
    engine = CpuEngine(directory, **{"invariant": True, "patch_limit": 0.1} | options)
    kept = [mask.storage for mask in engine.describe().masks]
    assert kept == ["base", "copy", "copy", "patch", "patch"]
    return engine


def prompts_for(engine: CpuEngine) -> list[list[int]]:
    text = engine.codec.encode(SAMPLE_TEXT) * 2
    return [text[i * 7 : i * 7 + length] for i, length in enumerate([1, 5, 16, 33, 64, 100, 150])]


async def alone(
    directory: Path, params: SamplingParams, masks: list[str | None]
) -> tuple[list[list[int]], list[Answer]]:
    """Every request by itself, in one chunk: what all other ways must reproduce."""
    engine = engine_for(directory, kv_bytes=8 << 20, prefix_cache=False)
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
    engine = engine_for(directory, kv_bytes=8 << 20, **options)
    for _ in range(2):  # the second time, prefixes are found
        assert_same(expected, await many(engine, prompts, params, masks))
    await engine.close()


MIXES: dict[str, list[str | None]] = {
    **{name: [name] * 7 for name in ("general", "copy", "other-copy", "patch", "other-patch")},
    "base-and-patches": ["patch", None, "other-patch", "patch", "general", "other-patch", "patch"],
    "all": ["other-patch", "copy", "patch", None, "other-copy", "patch", "copy"],
}


@pytest.mark.parametrize("masks", MIXES.values(), ids=MIXES)
async def test_masks_side_by_side(directory: Path, masks: list[str | None]) -> None:
    prompts, expected = await alone(directory, GREEDY, masks)
    for options in ({"step_tokens": 512}, {"step_tokens": 64, "mixed_prefill_tokens": 10}):
        engine = engine_for(directory, kv_bytes=8 << 20, **options)
        for _ in range(2):  # the second time, prefixes are found
            assert_same(expected, await many(engine, prompts, GREEDY, masks))
        await engine.close()


async def test_every_mask_says_something_else(directory: Path) -> None:
    masks: list[str | None] = ["general", "copy", "other-copy", "patch", "other-patch"]
    engine = engine_for(directory, kv_bytes=8 << 20)
    prompt = prompts_for(engine)[5]
    found = await many(engine, [prompt] * 5, GREEDY, masks)
    await engine.close()
    assert len({answer.logprobs[0].logprob for answer in found}) == 5


async def at_once(engine: CpuEngine, requests: Awaitable[list[Answer]]) -> list[Answer]:
    """The engine starts when all requests are there, however slow this thread may be just then."""
    held = threading.Event()
    engine._loop.call(lambda: held.wait() and None)
    running = asyncio.ensure_future(requests)
    await asyncio.sleep(0.05)  # every request has begun before a timer runs
    held.set()
    return await running


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("mix", ["general", "patch", "all"])
async def test_preemption(directory: Path, mix: str, params: SamplingParams) -> None:
    masks = MIXES[mix]
    prompts, expected = await alone(directory, params, masks)
    # Room for 13 pages: the longest sequence (190 tokens) needs 12 of them.
    engine = engine_for(directory, kv_bytes=13 * 2 * 2 * 1024)
    assert engine.describe().context_length == 13 * 16
    found = await at_once(engine, many(engine, prompts, params, masks))
    stats = engine.stats()
    await engine.close()
    assert stats.preemptions > 0
    assert stats.kv_used_share == 0.0
    assert_same(expected, found)


@pytest.mark.parametrize("kv_bytes", [1 << 20, 13 * 2 * 2 * 1024], ids=["room", "preempted"])
async def test_mixed_masks_arriving_at_random(directory: Path, kv_bytes: int) -> None:
    masks = MIXES["all"]
    prompts, expected = await alone(directory, GREEDY, masks)
    rng = random.Random(5)
    engine = engine_for(directory, kv_bytes=kv_bytes, max_sequences=5)

    async def later(i: int, within: float) -> Answer:
        await asyncio.sleep(rng.random() * within)
        found = await answers(engine, prompts[i], GREEDY, request_id=str(i), mask=masks[i])
        return found[0]

    # A fast machine ends spread requests one by one: the last round is there at once.
    for within in (0.05, 0.01, 0.0):
        order = rng.sample(range(7), 7)
        arriving = asyncio.gather(*(later(i, within) for i in order))
        told = await (arriving if within else at_once(engine, arriving))
        found = dict(zip(order, told, strict=True))
        assert_same(expected, [found[i] for i in range(7)])
    stats = engine.stats()
    assert stats.mask_switches > 0
    assert (stats.preemptions > 0) == (kv_bytes < 1 << 20)
    await engine.close()
