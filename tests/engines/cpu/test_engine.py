"""The CPU engine's promises beside equal answers: limits, failures, aborting, masks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import GenerationRequest
from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.errors import (
    EngineDeadError,
    EngineDirectoryError,
    EngineOverloadedError,
    InvalidRequestError,
    MaskError,
    PromptTooLongError,
    UnknownMaskError,
)
from engines.sampling import SamplingParams, StructuredOutput
from tests.engines.conftest import nearby_mask
from tests.engines.oracle import Oracle, answers, check_greedy, many

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
PROMPT = list(range(5, 25))


@pytest.fixture(scope="module")
def directory(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("cpu") / "engine"
    build(BuildRequest(tiny_model, "tiny", {"general": mask_of(tiny_model)}, out))
    return out


async def drained(engine: CpuEngine) -> None:
    """Wait until nothing runs any more."""
    for _ in range(500):
        stats = engine.stats()
        if stats.running == stats.waiting == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the engine does not come to rest")


async def test_aborting_frees_the_pages_within_a_step(directory: Path) -> None:
    engine = CpuEngine(directory, kv_bytes=1 << 20, max_sequences=2)
    long = replace(GREEDY, max_tokens=400)
    streams = [engine.generate(GenerationRequest(str(i), tuple(PROMPT), long)) for i in range(4)]
    first = [await anext(stream) for stream in streams[:2]]
    assert all(chunk.token_ids for chunk in first)
    assert engine.stats().kv_used_share > 0
    waiting = asyncio.ensure_future(anext(streams[2]))
    await asyncio.sleep(0.02)
    await streams[0].aclose()
    await engine.abort("1")
    chunk = await anext(streams[1])
    while chunk.finish_reason is None:
        chunk = await anext(streams[1])
    assert chunk.finish_reason == "abort"
    assert (await waiting).token_ids  # the third took a place that became free
    await engine.abort("2")
    await engine.abort("unknown")
    await streams[2].aclose()
    await drained(engine)
    assert engine.stats().kv_used_share == 0.0
    assert engine.describe().masks[0].pinned == 0
    await engine.close()


async def test_a_failing_request_fails_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CpuEngine(directory, kv_bytes=1 << 20)
    (expected,) = await answers(engine, PROMPT, GREEDY)
    native = engine._model.step

    def failing(step):  # type: ignore[no-untyped-def]
        if 29 in step.tokens:
            raise ValueError("this token is cursed")
        return native(step)

    monkeypatch.setattr(engine._model, "step", failing)
    good, bad, other = await many(engine, [PROMPT, [*PROMPT, 29], PROMPT], GREEDY)
    assert good.token_ids == other.token_ids == expected.token_ids
    assert (bad.finish_reason, bad.error) == ("error", "this token is cursed")
    assert engine.stats().kv_used_share == 0.0
    await engine.close()


async def test_a_dying_thread_is_noticed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CpuEngine(directory, kv_bytes=1 << 20)

    def broken() -> None:
        raise RuntimeError("the scheduler is broken")

    monkeypatch.setattr(engine._scheduler, "schedule", broken)
    with pytest.raises(EngineDeadError, match="broken"):
        await answers(engine, PROMPT, GREEDY)
    with pytest.raises(EngineDeadError):
        await answers(engine, PROMPT, GREEDY)
    await engine.close()


async def test_a_stuck_engine_shows_in_the_stats(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    engine = CpuEngine(directory, kv_bytes=1 << 20)
    assert engine.stats().seconds_since_step == 0.0
    gate = threading.Event()
    native = engine._model.step
    monkeypatch.setattr(engine._model, "step", lambda step: (gate.wait(), native(step))[1])
    run = asyncio.ensure_future(answers(engine, PROMPT, GREEDY))
    await asyncio.sleep(0.2)
    assert engine.stats().seconds_since_step > 0.1
    gate.set()
    (answer,) = await run
    assert answer.finish_reason == "length"
    await engine.close()


async def test_closing_ends_what_runs(directory: Path) -> None:
    engine = CpuEngine(directory, kv_bytes=1 << 20)
    run = asyncio.ensure_future(answers(engine, PROMPT, replace(GREEDY, max_tokens=450)))
    await asyncio.sleep(0.05)
    await engine.close()
    await engine.close()
    (answer,) = await run
    assert answer.finish_reason in ("abort", "length")
    with pytest.raises(EngineDeadError):
        await answers(engine, PROMPT, GREEDY)


async def test_requests_that_cannot_run_are_refused(directory: Path) -> None:
    engine = CpuEngine(directory, kv_bytes=1 << 20, max_waiting=3)
    cases = [
        ([], GREEDY, InvalidRequestError, "empty"),
        ([5] * 512, GREEDY, PromptTooLongError, "512"),
        ([5, 300], GREEDY, InvalidRequestError, "300"),
        ([5, -1], GREEDY, InvalidRequestError, "-1"),
        ([5], replace(GREEDY, logit_bias={300: 1.0}), InvalidRequestError, "logit_bias"),
        ([5], replace(GREEDY, stop_token_ids=(999,)), InvalidRequestError, "stop_token_ids"),
        ([5], replace(GREEDY, n=4), EngineOverloadedError, "waiting"),
    ]
    for prompt, params, error, message in cases:
        with pytest.raises(error, match=message):
            await answers(engine, prompt, params)
    with pytest.raises(UnknownMaskError, match="nope"):
        await answers(engine, PROMPT, GREEDY, mask="nope")
    # None of them left anything behind.
    assert engine.stats().waiting == 0
    assert len(await answers(engine, PROMPT, replace(GREEDY, n=3))) == 3
    await engine.close()


async def test_a_request_that_fails_before_it_is_queued_gives_its_places_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CpuEngine(directory, kv_bytes=1 << 20, max_waiting=3)

    def broken(*_: object, **__: object) -> None:
        raise InvalidRequestError("no such grammar", param="grammar")

    monkeypatch.setattr(engine._codec, "stream", broken)
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="no such grammar"):
            await answers(engine, PROMPT, replace(GREEDY, n=3))
        assert engine.stats().waiting == 0
        assert engine.describe().masks[0].pinned == 0
    await engine.close()


async def test_several_choices_share_the_prompt(directory: Path) -> None:
    engine = CpuEngine(directory, kv_bytes=1 << 20)
    params = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=12, ignore_eos=True)
    found = await answers(engine, PROMPT * 3, params)
    again = await answers(engine, PROMPT * 3, params, salt="other")
    assert [a.token_ids for a in found] == [a.token_ids for a in again]
    assert len({tuple(a.token_ids) for a in found}) == 3
    assert [a.cached_tokens for a in found] == [0, 48, 48]
    await engine.close()


async def test_structured_output_and_stops(directory: Path) -> None:
    engine = CpuEngine(directory, kv_bytes=1 << 20)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    params = SamplingParams(
        temperature=0.0,
        max_tokens=60,
        structured=StructuredOutput("json_schema", json.dumps(schema)),
    )
    (answer,) = await answers(engine, PROMPT, params)
    assert answer.finish_reason == "stop"
    assert json.loads(answer.text)["a"] in (1, 22)
    choice = replace(params, structured=StructuredOutput("choice", '["left", "right"]'))
    assert (await answers(engine, PROMPT, choice))[0].text in ("left", "right")
    pattern = replace(params, structured=StructuredOutput("regex", "[0-9]{3}x"))
    (matched,) = await answers(engine, PROMPT, pattern)
    assert len(matched.text) == 4
    assert matched.text[:3].isdigit()
    for bad in (
        StructuredOutput("regex", "(["),
        StructuredOutput("json_schema", "{"),
        StructuredOutput("choice", '{"a": 1}'),
    ):
        with pytest.raises(InvalidRequestError, match=r"structured|choice|schema"):
            await answers(engine, PROMPT, replace(params, structured=bad))
    (free,) = await answers(engine, PROMPT, GREEDY)
    stop = free.text[2:4]
    (stopped,) = await answers(engine, PROMPT, replace(GREEDY, stop=(stop,)))
    assert stopped.text == free.text[: free.text.find(stop)]
    assert stopped.stop_reason == stop
    await engine.close()


@pytest.mark.parametrize(("share", "storage"), [(0.005, "patch"), (0.5, "copy")])
async def test_a_mask_loaded_while_serving(
    share: float,
    storage: str,
    directory: Path,
    tiny_model: Path,
    mask_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = nearby_mask(mask_of(tiny_model), tmp_path / "near.safetensors", share)
    engine = CpuEngine(directory, kv_bytes=1 << 20, invariant=True, patch_limit=0.05)
    params = replace(GREEDY, logprobs=0)
    (before,) = await answers(engine, PROMPT, params)
    running = asyncio.ensure_future(answers(engine, PROMPT, replace(params, max_tokens=200)))
    info = await engine.load_mask("near", path)
    await running
    assert info.storage == storage
    why = "a patch up to 5.00%, which patch_limit says"
    assert info.reason == f"{info.changed_share:.2%} of groups changed; {why}"
    assert info.changed_share == pytest.approx(share, rel=0.5)
    assert 0 < info.resident_bytes < engine.describe().weight_bytes
    (alone,) = await answers(engine, PROMPT, params, mask="near")
    mixed = await many(
        engine, [PROMPT, PROMPT[:3], PROMPT, PROMPT[:9]], params, ["near", None, None, "near"]
    )
    assert mixed[0].token_ids == alone.token_ids
    assert [p.logprob for p in mixed[0].logprobs] == [p.logprob for p in alone.logprobs]
    assert mixed[2].token_ids == before.token_ids
    agreement = check_greedy(Oracle(tiny_model, path), PROMPT, alone, margin=0.5, tolerance=0.5)
    assert agreement.error / agreement.steps < 0.06
    assert any(a.logprob != b.logprob for a, b in zip(alone.logprobs, before.logprobs, strict=True))
    await engine.close()


async def test_unloading_waits_for_the_last_pin(
    directory: Path, tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    path = nearby_mask(mask_of(tiny_model), tmp_path / "near.safetensors", 0.005)
    engine = CpuEngine(directory, kv_bytes=1 << 20, invariant=True, mask_storage="patch")
    await engine.load_mask("near", path)
    weights = engine.describe().weight_bytes
    (expected,) = await answers(engine, PROMPT, replace(GREEDY, max_tokens=60), mask="near")
    request = GenerationRequest("x", tuple(PROMPT), replace(GREEDY, max_tokens=60), "near")
    stream = engine.generate(request)
    tokens = list((await anext(stream)).token_ids)
    await engine.unload_mask("near")
    with pytest.raises(UnknownMaskError):
        await answers(engine, PROMPT, GREEDY, mask="near")
    assert engine.describe().weight_bytes == weights  # still pinned
    await engine.load_mask("near", nearby_mask(path, tmp_path / "far.safetensors", 0.02, seed=9))
    async for chunk in stream:
        tokens += chunk.token_ids
    assert tokens == expected.token_ids
    await engine.unload_mask("near")
    for _ in range(100):
        if engine.describe().weight_bytes < weights:
            break
        await asyncio.sleep(0.02)
    assert [m.name for m in engine.describe().masks] == ["general"]
    with pytest.raises(MaskError, match="default"):
        await engine.unload_mask("general")
    with pytest.raises(UnknownMaskError):
        await engine.unload_mask("near")
    await engine.close()
    assert engine.describe().weight_bytes < weights


async def test_masks_that_cannot_be_loaded(
    directory: Path, tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    from tests.tiny_model import make_tiny_llama

    engine = CpuEngine(directory, kv_bytes=1 << 20)
    other = make_tiny_llama(tmp_path / "other", seed=5)
    (tmp_path / "broken").write_bytes(b"123")
    for name, path, message in [
        ("x", mask_of(other), "base digest"),
        ("x", tmp_path / "missing", "No such file"),
        ("x", tmp_path / "broken", "not a mask file"),
        ("x", mask_of(tiny_model, leave_out="up_proj"), "other layers"),
        ("../x", mask_of(tiny_model), "letters"),
        ("general", mask_of(tiny_model), "loaded already"),
    ]:
        with pytest.raises(MaskError, match=message):
            await engine.load_mask(name, path)
    assert [m.name for m in engine.describe().masks] == ["general"]
    await engine.close()
    sealed = tmp_path / "sealed"
    two = {"g": mask_of(tiny_model), "h": mask_of(tiny_model, 1)}
    with pytest.raises(EngineDirectoryError, match="holds one mask"):
        build(BuildRequest(tiny_model, "t", two, sealed, sealed=True))
    build(BuildRequest(tiny_model, "t", {"g": mask_of(tiny_model)}, sealed, sealed=True))
    engine = CpuEngine(sealed, kv_bytes=1 << 20)
    with pytest.raises(MaskError, match="sealed"):
        await engine.load_mask("x", mask_of(tiny_model, 1))
    await engine.close()


def test_options_out_of_range(directory: Path) -> None:
    for options, message in [
        ({"kv_bytes": 0}, "kv_bytes"),
        ({"step_tokens": 8}, "max_sequences"),
        ({"kv_bytes": 4096, "context_length": 512}, "raise kv_bytes"),
        ({"mask_storage": "disk"}, "mask_storage is 'disk': must be 'patch' or 'copy'"),
    ]:
        with pytest.raises(ValueError, match=message):
            CpuEngine(directory, **options)
