"""Answers depend on the directory and the request alone: not on the start, the load, or history."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.directory.manifest import read_manifest
from engines.sampling import SamplingParams, StructuredOutput
from tests.engines.conftest import nearby_mask
from tests.engines.oracle import answers

Answers = dict[int, list[list[int]]]

STARTS: list[dict[str, Any]] = [
    {},
    {},
    {"threads": 2, "step_tokens": 64},
    {"prefix_cache": False, "max_sequences": 5},
    {"kv_bytes": 160 << 10, "mixed_prefill_tokens": 16},  # sequences give way to each other
]


def mixed_requests() -> list[tuple[list[int], SamplingParams, str | None]]:
    rng = random.Random(0)
    made = []
    for number in range(30):
        params = SamplingParams(
            n=rng.choice([1, 1, 2]),
            temperature=rng.choice([0.0, 0.0, 0.8, 1.3]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 30]),
            seed=number,
            max_tokens=rng.randint(4, 24),
            ignore_eos=True,
            presence_penalty=rng.choice([0.0, 0.5]),
            logit_bias=rng.choice([{}, {7: 3.0}]),
            stop=rng.choice([(), ("zq",)]),
            logprobs=rng.choice([None, 2]),
        )
        if number % 10 == 9:
            params = replace(params, structured=StructuredOutput("regex", "[a-z ]{4,20}"))
        prompt = [rng.randrange(3, 290) for _ in range(rng.choice([1, 9, 40, 120]))]
        made.append((prompt, params, rng.choice([None, "general", "near", "far", "far"])))
    return made


@pytest.fixture(scope="module")
def masks(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("masks")
    general = mask_of(tiny_model, leave_out="v_proj")
    shares = {"near": 0.01, "far": 0.3, "late": 0.015, "other": 0.2}
    made = {n: nearby_mask(general, folder / n, s, i) for i, (n, s) in enumerate(shares.items())}
    return {"general": general} | made


@pytest.fixture
def directory(tiny_model: Path, masks: dict[str, Path], tmp_path: Path) -> Path:
    return rebuilt(tiny_model, masks, tmp_path / "engine")


def rebuilt(model: Path, masks: dict[str, Path], out: Path) -> Path:
    chosen = {name: masks[name] for name in ("general", "near", "far")}
    build(BuildRequest(model, "tiny", chosen, out, overwrite=True))
    return out


async def ask_all(engine: CpuEngine, order: int, mask: str | None = None) -> Answers:
    """All requests at once, sent in some order; with `mask`, that of each is replaced."""
    requests = list(enumerate(mixed_requests()))
    random.Random(order).shuffle(requests)
    found: Answers = {}

    async def one(number: int, prompt: list[int], params: SamplingParams, own: str | None) -> None:
        made = await answers(engine, prompt, params, request_id=str(number), mask=mask or own)
        assert [answer.error for answer in made] == [None] * params.n
        found[number] = [answer.token_ids for answer in made]

    await asyncio.gather(*(one(number, *request) for number, request in requests))
    return found


async def test_five_starts_answer_alike(directory: Path) -> None:
    found = []
    for order, options in enumerate(STARTS):
        engine = CpuEngine(directory, **{"kv_bytes": 8 << 20} | options)
        found.append(await ask_all(engine, order))
        storage = {mask.name: mask.storage for mask in engine.describe().masks}
        assert storage == {"general": "base", "near": "patch", "far": "copy"}
        assert storage == {mask.name: mask.storage for mask in read_manifest(directory).masks}
        await engine.close()
    assert len(found[0]) == 30
    for other in found[1:]:
        assert other == found[0]


async def test_load_unload_and_rebuild_change_no_answer(
    directory: Path, tiny_model: Path, masks: dict[str, Path]
) -> None:
    engine = CpuEngine(directory, kv_bytes=8 << 20)
    first = await ask_all(engine, 0)
    late: dict[str, Answers] = {}
    for name in ("late", "other", "late", "other"):
        await engine.load_mask(name, masks[name])
        answer = await ask_all(engine, 1, mask=name)
        assert late.setdefault(name, answer) == answer
        assert await ask_all(engine, 2) == first
        await engine.unload_mask(name)
    assert late["late"] != late["other"]
    rebuilt(tiny_model, masks, directory)
    assert await ask_all(engine, 3) == first  # the running one does not mind
    await engine.close()
    engine = CpuEngine(directory, kv_bytes=8 << 20)
    assert await ask_all(engine, 4) == first
    await engine.load_mask("late", masks["late"])
    assert await ask_all(engine, 5, mask="late") == late["late"]
    await engine.close()
