"""A long run of random traffic: `make soak`, or pytest -m soak."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from engines.base import GenerationRequest
from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.errors import EngineOverloadedError, UnknownMaskError
from engines.sampling import SamplingParams, StructuredOutput
from tests.engines.conftest import VALUES, nearby_mask

_log = logging.getLogger(__name__)

SECONDS = float(os.environ.get("TWOFOUR_SOAK_SECONDS", "900")) / len(VALUES)


def random_params(rng: random.Random) -> SamplingParams:
    params = SamplingParams(
        n=rng.choice([1, 1, 1, 3]),
        temperature=rng.choice([0.0, 0.7, 1.5]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 20]),
        seed=rng.choice([None, 4]),
        max_tokens=rng.randint(1, 120),
        ignore_eos=rng.random() < 0.5,
        logprobs=rng.choice([None, 2]),
        prompt_logprobs=rng.choice([None, None, 0]),
        stop=rng.choice([(), ("the", "q")]),
        presence_penalty=rng.choice([0.0, 0.5]),
    )
    if rng.random() < 0.1:
        return replace(params, structured=StructuredOutput("regex", "[a-z ]{1,40}"))
    return params


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("values", VALUES)
async def test_random_requests_masks_and_cancellations(
    values: str, tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    masks = {name: mask_of(tiny_model, seed) for seed, name in enumerate("ab")}
    masks["p"] = nearby_mask(masks["a"], tmp_path / "p.safetensors", 0.03)
    build(BuildRequest(tiny_model, "tiny", masks, tmp_path / "engine", values=VALUES[values]))
    engine = CpuEngine(
        tmp_path / "engine",
        kv_bytes=200 << 10,
        max_sequences=12,
        max_waiting=20,
        patch_limit=0.1,
    )
    assert [mask.storage for mask in engine.describe().masks] == ["base", "copy", "patch"]
    context = engine.describe().context_length
    rng = random.Random(1)
    outcome: Counter[str] = Counter()
    process = psutil.Process()
    memory: list[int] = []
    end = time.monotonic() + SECONDS

    async def one(number: int) -> None:
        length = min(rng.choice([1, 10, 60, 200]), context - 1)
        prompt = tuple(rng.randrange(290) for _ in range(length))
        request = GenerationRequest(
            str(number), prompt, random_params(rng), rng.choice(["a", "b", "c", "p", None])
        )
        patience = rng.choice([10**6, 10**6, rng.randint(0, 30)])
        open_choices = request.sampling.n
        try:
            stream = engine.generate(request)
            async for chunk in stream:
                open_choices -= chunk.finish_reason is not None
                patience -= 1
                if patience <= 0:
                    break
            await stream.aclose()  # type: ignore[attr-defined]
            outcome["finished" if open_choices == 0 else "cancelled"] += 1
        except EngineOverloadedError:
            outcome["refused"] += 1
            await asyncio.sleep(0.05)
        except UnknownMaskError:
            outcome["no such mask"] += 1

    async def swap_masks() -> None:
        far = mask_of(tiny_model, 2)
        near = nearby_mask(masks["a"], tmp_path / "near.safetensors", 0.03, seed=3)
        paths = itertools.cycle((far, near))
        while time.monotonic() < end:
            await engine.load_mask("c", next(paths))
            await asyncio.sleep(0.3)
            await engine.unload_mask("c")
            await asyncio.sleep(0.1)

    async def client(number: int) -> None:
        count = 0
        while time.monotonic() < end:
            await one(number * 10**6 + count)
            count += 1
            outcome["sent"] += 1
            if number == 0 and count % 20 == 0:
                memory.append(process.memory_info().rss)

    await asyncio.gather(swap_masks(), *(client(i) for i in range(16)))
    for _ in range(500):
        if engine.stats().running == engine.stats().waiting == 0:
            break
        await asyncio.sleep(0.02)
    stats = engine.stats()
    pinned = [mask.pinned for mask in engine.describe().masks]
    await engine.close()
    settled = memory[len(memory) // 4 :]
    _log.info(
        "%s; %s steps, %s preemptions; memory after a quarter %.1f MiB, at most %.1f, last %.1f",
        dict(outcome),
        stats.steps,
        stats.preemptions,
        *(size / 2**20 for size in (settled[0], max(settled), settled[-1])),
    )
    assert stats.kv_used_share == 0.0
    assert (stats.running, stats.waiting) == (0, 0)
    assert pinned == [0, 0, 0]
    assert stats.preemptions > 0
    assert sum(outcome.values()) == 2 * outcome["sent"]
    assert min(outcome["finished"], outcome["cancelled"]) > 0
    assert max(settled) < 1.1 * settled[0] + (20 << 20)
