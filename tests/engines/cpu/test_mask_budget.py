"""A budget of bytes for masks: they leave memory and return, and answers stay the same bits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from engines.base import GenerationChunk, GenerationRequest
from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.errors import EngineOverloadedError, MaskError, MaskMemoryError, UnknownMaskError
from engines.sampling import SamplingParams
from tests.engines.conftest import VALUES, nearby_mask
from tests.engines.oracle import Answer, answers, many

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, logprobs=0)
LONG = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True)
PROMPT = list(range(5, 25))
KV = 8 << 20
NAMES = ("general", "near", "far", "next")


@pytest.fixture(scope="module", params=["bf16", "int4"])
def directory(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    mask_of: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """With a patch and two copies beside the base."""
    folder = tmp_path_factory.mktemp(f"budget-{request.param}")
    masks = {"general": mask_of(tiny_model)}
    for seed, (name, share) in enumerate({"near": 0.01, "far": 0.4, "next": 0.5}.items()):
        masks[name] = nearby_mask(masks["general"], folder / f"{name}.safetensors", share, seed)
    values = VALUES[request.param]
    build(BuildRequest(tiny_model, "tiny", masks, folder / "engine", values=values))
    return folder / "engine"


async def unlimited(directory: Path) -> tuple[dict[str, Answer], dict[str, int]]:
    """Answers and bytes of every mask where all stay."""
    engine = CpuEngine(directory, kv_bytes=KV, prefix_cache=False)
    told = {name: (await answers(engine, PROMPT, GREEDY, mask=name))[0] for name in NAMES}
    sizes = {mask.name: mask.resident_bytes for mask in engine.describe().masks}
    await engine.close()
    return told, sizes


def resident(engine: CpuEngine) -> set[str]:
    return {mask.name for mask in engine.describe().masks if mask.resident}


def check_budget(engine: CpuEngine) -> None:
    info = engine.describe()
    assert info.mask_budget is not None
    assert sum(mask.resident_bytes for mask in info.masks) <= info.mask_budget


async def test_the_least_recently_used_leave_and_return_the_same(directory: Path) -> None:
    expected, sizes = await unlimited(directory)
    room = sizes["near"] + max(sizes["far"], sizes["next"])
    engine = CpuEngine(directory, kv_bytes=KV, mask_bytes=room, prefix_cache=False)
    assert resident(engine) == {"general", "near", "far"}, "as many as fit, in the given order"
    for name, stay in (
        ("near", {"near", "far"}),
        ("next", {"near", "next"}),
        ("far", {"far"}),  # near was used before next, and its few bytes are not enough
        ("near", {"near", "far"}),
        ("general", {"near", "far"}),
        ("next", {"near", "next"}),
    ):
        assert (await answers(engine, PROMPT, GREEDY, mask=name))[0] == expected[name], name
        assert resident(engine) == {"general", *stay}, name
        check_budget(engine)
    stats = engine.stats()
    assert (stats.mask_evictions, stats.mask_restores) == (4, 4)
    infos = {mask.name: mask for mask in engine.describe().masks}
    assert infos["far"].resident_bytes == 0
    assert infos["far"].storage == "copy"
    assert len({info.digest for info in infos.values()}) == 4
    await engine.close()


async def test_what_running_requests_use_stays(directory: Path) -> None:
    expected, sizes = await unlimited(directory)
    room = max(sizes["far"], sizes["next"])
    engine = CpuEngine(directory, kv_bytes=KV, mask_bytes=room, prefix_cache=False, max_sequences=1)
    running = engine.generate(GenerationRequest("r", tuple(PROMPT), LONG, "far"))
    await anext(running)
    # More that wait behind it: on a busy machine the first may be over before the next line is.
    waiting = [
        engine.generate(GenerationRequest(f"w{i}", tuple(PROMPT), LONG, "far")) for i in "123456"
    ]
    firsts = [asyncio.ensure_future(anext(one)) for one in waiting]
    await asyncio.sleep(0)
    with pytest.raises(MaskMemoryError, match="'next' finds no room beside them"):
        await answers(engine, PROMPT, GREEDY, mask="next", request_id="s")
    assert "far" in resident(engine)
    for first in firsts:
        first.cancel()
    await asyncio.gather(*firsts, return_exceptions=True)
    await running.aclose()
    for _ in range(500):
        if not engine.stats().running:
            break
        await asyncio.sleep(0.01)
    assert (await answers(engine, PROMPT, GREEDY, mask="next"))[0] == expected["next"]
    assert "far" not in resident(engine)
    await engine.close()


async def test_requests_that_wait_for_one_mask_share_the_work(directory: Path) -> None:
    expected, sizes = await unlimited(directory)
    engine = CpuEngine(directory, kv_bytes=KV, mask_bytes=sizes["near"] + sizes["far"])
    told = await many(engine, [PROMPT] * 6, GREEDY, ["next"] * 6)
    assert [answer.token_ids for answer in told] == [expected["next"].token_ids] * 6
    assert engine.stats().mask_restores == 1
    await engine.close()


async def test_a_client_that_leaves_while_its_mask_returns(directory: Path) -> None:
    _, sizes = await unlimited(directory)
    engine = CpuEngine(directory, kv_bytes=KV, mask_bytes=sizes["near"] + sizes["far"])
    waiting = asyncio.ensure_future(
        anext(engine.generate(GenerationRequest("r", tuple(PROMPT), GREEDY, "next")))
    )
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert all(mask.pinned == 0 for mask in engine.describe().masks)
    await engine.unload_mask("next")
    assert (await answers(engine, PROMPT, GREEDY, mask="far"))[0].token_ids
    check_budget(engine)
    await engine.close()


async def test_traffic_loads_and_unloads_stay_exact(directory: Path, tmp_path: Path) -> None:
    """Random requests while masks come and go, under a budget for two of them."""
    expected, sizes = await unlimited(directory)
    late = directory / "masks" / "next.safetensors"
    expected["late"] = expected["next"]
    engine = CpuEngine(directory, kv_bytes=KV, mask_bytes=sizes["far"] + sizes["next"])
    rng = random.Random(7)
    outcomes = {"answered": 0, "refused": 0, "unknown": 0}

    async def ask(number: int) -> None:
        for turn in range(8):
            name = rng.choice([*NAMES, "late"])
            try:
                request_id = f"{number}-{turn}"
                salt = rng.choice(["", request_id])  # with the prefix cache and without
                [answer] = await answers(
                    engine, PROMPT, GREEDY, mask=name, request_id=request_id, salt=salt
                )
            except EngineOverloadedError:
                outcomes["refused"] += 1
            except UnknownMaskError:
                assert name == "late"
                outcomes["unknown"] += 1
            else:
                outcomes["answered"] += 1
                assert answer.token_ids == expected[name].token_ids, name
            check_budget(engine)

    async def change() -> None:
        for _ in range(12):
            try:
                await engine.load_mask("late", late)
            except EngineOverloadedError:
                await asyncio.sleep(0.01)
                continue
            await asyncio.sleep(0.02)
            await engine.unload_mask("late")

    await asyncio.gather(change(), *(ask(number) for number in range(6)))
    assert outcomes["answered"] > 20, outcomes
    assert engine.stats().mask_restores > 1
    for name in NAMES:
        [answer] = await answers(engine, PROMPT, GREEDY, mask=name)
        assert answer.token_ids == expected[name].token_ids, name
    assert all(mask.pinned == 0 for mask in engine.describe().masks)
    await engine.close()


async def test_after_a_switch_of_the_base(directory: Path) -> None:
    options = {"kv_bytes": KV, "mask_storage": "patch", "invariant": True, "prefix_cache": False}
    free = CpuEngine(directory, **options)
    await free.switch_base("far")
    expected = {n: (await answers(free, PROMPT, GREEDY, mask=n))[0] for n in NAMES}
    largest = max(mask.resident_bytes for mask in free.describe().masks)
    await free.close()
    engine = CpuEngine(directory, **options, mask_bytes=largest * 2)
    await engine.switch_base("far")
    for name in ("next", "near", "far", "general", "next"):
        assert (await answers(engine, PROMPT, GREEDY, mask=name))[0] == expected[name], name
        check_budget(engine)
    assert engine.stats().mask_restores
    await engine.close()


async def test_a_mask_larger_than_the_budget_is_refused(directory: Path, tmp_path: Path) -> None:
    _, sizes = await unlimited(directory)
    with pytest.raises(MaskError, match=f"takes {sizes['near']} bytes.*mask_bytes, 10"):
        CpuEngine(directory, kv_bytes=KV, mask_bytes=10)
    engine = CpuEngine(directory, kv_bytes=KV, mask_bytes=sizes["near"])
    with pytest.raises(MaskError, match="mask_bytes"):
        await answers(engine, PROMPT, GREEDY, mask="far")
    with pytest.raises(MaskError, match="mask_bytes"):
        await engine.load_mask("other", directory / "masks" / "far.safetensors")
    assert "other" not in {mask.name for mask in engine.describe().masks}
    await engine.close()


@pytest.mark.parametrize("change", ["gone", "another"])
async def test_a_file_that_is_no_longer_what_it_was(
    directory: Path, tmp_path: Path, change: str
) -> None:
    _, sizes = await unlimited(directory)
    masks = directory / "masks"
    file = tmp_path / "late.safetensors"
    file.write_bytes((masks / "far.safetensors").read_bytes())
    engine = CpuEngine(directory, kv_bytes=KV, mask_bytes=sizes["far"])
    await engine.load_mask("late", file)
    await answers(engine, PROMPT, GREEDY, mask="far")
    assert "late" not in resident(engine)
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes((masks / "next.safetensors").read_bytes())
    message = "No such file" if change == "gone" else "holds another mask now"
    with pytest.raises(MaskError, match=message):
        await answers(engine, PROMPT, GREEDY, mask="late")
    assert (await answers(engine, PROMPT, GREEDY, mask="far"))[0].token_ids
    await engine.close()


async def test_closing_ends_those_who_wait(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.errors import EngineDeadError

    _, sizes = await unlimited(directory)
    engine = CpuEngine(directory, kv_bytes=KV, mask_bytes=sizes["far"])
    never = asyncio.Event()

    async def wait(mask: object) -> None:
        await never.wait()

    monkeypatch.setattr(engine._masks.residency, "_prepare", wait)
    stream: AsyncIterator[GenerationChunk] = engine.generate(
        GenerationRequest("r", tuple(PROMPT), GREEDY, "next")
    )
    waiting = asyncio.ensure_future(anext(stream))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    await engine.close()
    with pytest.raises(EngineDeadError):
        await waiting
