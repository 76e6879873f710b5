"""The engine class over a stand-in for the LLM API: routing, streaming, stopping, memory."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.base import GenerationChunk, GenerationRequest
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
from engines.registry import open_engine
from engines.sampling import SamplingParams, StructuredOutput
from engines.tensorrt_llm.build import build, extend
from engines.tensorrt_llm.engine import TensorRtLlmEngine
from engines.tensorrt_llm.llm_api import sampling_arguments
from engines.tensorrt_llm.version import ToolsMissingError
from tests.engines.conftest import edit_manifest
from tests.engines.tensorrt_llm.fake_llm import FakeLlm, install_fake
from tests.engines.tensorrt_llm.helpers import mask_file
from tests.engines.tensorrt_llm.standins import install
from tests.tiny_model import make_tiny_llama

PROMPT = (5, 17, 200, 31)
KV_GIB = 2**-10  # 1 MiB, 4096 tokens of the tiny model


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    model = make_tiny_llama(folder / "hf")
    names = ("general", "french", "code")
    masks = {n: mask_file(model, folder / f"{n}.safetensors", i) for i, n in enumerate(names)}
    with pytest.MonkeyPatch.context() as patch:
        install(folder / "tools", patch)
        build(BuildRequest(model, "tiny", masks, folder / "dir"), prompt_logprobs=True)
    return folder / "dir"


@pytest.fixture
def llms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeLlm]:
    install(tmp_path / "tools", monkeypatch)
    return install_fake(monkeypatch)


@pytest.fixture
async def engine(built: Path, llms: type[FakeLlm]) -> AsyncIterator[TensorRtLlmEngine]:
    engine = open_engine(built, kv_gib=KV_GIB)
    assert isinstance(engine, TensorRtLlmEngine)
    yield engine
    await engine.close()


def _request(mask: str | None = None, *, id_: str = "r", **sampling: object) -> GenerationRequest:
    settings = {"temperature": 0.0, "max_tokens": 6, "ignore_eos": True} | sampling
    return GenerationRequest(id_, PROMPT, SamplingParams(**settings), mask=mask)


async def _collect(engine: TensorRtLlmEngine, request: GenerationRequest) -> list[GenerationChunk]:
    return [chunk async for chunk in engine.generate(request)]


def _tokens(chunks: list[GenerationChunk], index: int = 0) -> list[int]:
    return [token for c in chunks if c.index == index for token in c.token_ids]


async def test_a_request_runs_on_its_masks_engine(
    engine: TensorRtLlmEngine, llms: type[FakeLlm]
) -> None:
    answers = {}
    for mask in (None, "french", "code", "general"):
        chunks = await _collect(engine, _request(mask))
        answers[mask] = _tokens(chunks)
        assert len(chunks) == 6  # streamed token by token
        assert [c.finish_reason for c in chunks] == [None] * 5 + ["length"]
        # Half a character at the end is never emitted.
        text = "".join(c.text for c in chunks)
        assert text
        assert engine.codec.decode(answers[mask]).startswith(text)
    by_name = {llm.name: llm for llm in llms.made}
    assert len(llms.made) == 3  # each was loaded once
    for mask in ("general", "french", "code"):
        assert answers[mask] == by_name[mask].expected(PROMPT, 6)
    assert answers[None] == answers["general"]
    assert len({tuple(tokens) for tokens in answers.values()}) == 3


async def test_what_it_says_of_itself(engine: TensorRtLlmEngine) -> None:
    info = engine.describe()
    assert info.kind == "tensorrt_llm"
    assert info.version == "TensorRT-LLM 1.2.1"
    assert (info.sparse_layers, info.eligible_layers) == (8, 8)
    assert info.context_length == 512
    assert [mask.name for mask in info.masks] == ["general", "french", "code"]
    assert [mask.storage for mask in info.masks] == ["base", "copy", "copy"]
    assert info.masks[0].resident_bytes > 0
    assert info.masks[1].resident_bytes == 0
    assert info.masks[1].changed_share > 0.5
    assert "8 of 8 eligible layers use a sparse tactic" in info.kernels["french"]


async def test_the_end_of_sequence_token_ends_it(
    engine: TensorRtLlmEngine, llms: type[FakeLlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = llms.made[0].expected(PROMPT, 2)[1]
    monkeypatch.setattr(engine.codec, "eos_token_ids", (second,))
    for hidden in (False, True):  # whether the results include the token itself
        monkeypatch.setattr(llms, "hide_end", hidden)
        chunks = await _collect(engine, _request(ignore_eos=False))
        assert chunks[-1].finish_reason == "stop"
        assert chunks[-1].stop_reason is None
        assert len(_tokens(chunks)) == 2 - hidden
    arguments = llms.made[0].requests[-1][1]
    assert arguments.end_id == second
    assert len(_tokens(await _collect(engine, _request()))) == 6
    assert llms.made[0].requests[-1][1].end_id == -1


async def test_stop_strings_and_stop_tokens(engine: TensorRtLlmEngine, llms: type[FakeLlm]) -> None:
    expected = llms.made[0].expected(PROMPT, 6)
    text = engine.codec.decode(expected)
    stop = text[3:5]
    chunks = await _collect(engine, _request(stop=(stop,)))
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].stop_reason == stop
    assert "".join(c.text for c in chunks) == text[: text.index(stop)]
    chunks = await _collect(engine, _request(stop_token_ids=(expected[3],)))
    assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == ("stop", expected[3])
    assert _tokens(chunks) == expected[: expected.index(expected[3]) + 1]


async def test_several_choices(engine: TensorRtLlmEngine, llms: type[FakeLlm]) -> None:
    chunks = await _collect(engine, _request(n=3, temperature=0.7, seed=11))
    assert {c.index for c in chunks if c.finish_reason == "length"} == {0, 1, 2}
    seeds = [params.seed for _, params, _, _ in llms.made[0].requests]
    assert seeds == [11, 12, 13]


async def test_logprobs_come_from_the_logits(
    engine: TensorRtLlmEngine, llms: type[FakeLlm]
) -> None:
    (chunk,) = await _collect(engine, _request(logprobs=2, prompt_logprobs=0))
    llm = llms.made[0]
    assert llm.requests[-1][2] is False  # not streamed
    last = PROMPT[-1]
    assert chunk.logprobs is not None
    for token, found in zip(chunk.token_ids, chunk.logprobs, strict=True):
        expected = torch.log_softmax(llm.logits(last), dim=0)
        assert found.token_id == token
        assert found.logprob == pytest.approx(float(expected[token]), abs=1e-5)
        assert found.rank == 1
        assert [t for t, _ in found.top] == expected.topk(2).indices.tolist()
        last = token
    assert chunk.prompt_logprobs is not None
    assert chunk.prompt_logprobs[0] is None
    for i, found in enumerate(chunk.prompt_logprobs[1:]):
        expected = torch.log_softmax(llm.logits(PROMPT[i]), dim=0)[PROMPT[i + 1]]
        assert found is not None
        assert found.token_id == PROMPT[i + 1]
        assert found.logprob == pytest.approx(float(expected), abs=1e-5)


async def test_scoring_leaves_room_in_the_context(
    engine: TensorRtLlmEngine, llms: type[FakeLlm]
) -> None:
    prompt = PROMPT * 128
    assert len(prompt) == engine.describe().context_length
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=1)
    (chunk,) = await _collect(engine, GenerationRequest("full", prompt, sampling))
    assert (chunk.text, chunk.token_ids, chunk.finish_reason) == ("", (), "length")
    inputs, arguments, streaming, _ = llms.made[0].requests[-1]
    assert (inputs, arguments.max_tokens, streaming) == (list(prompt[:-1]), 1, False)
    assert chunk.prompt_logprobs is not None
    assert len(chunk.prompt_logprobs) == len(prompt)
    for before, token, found in zip(prompt, prompt[1:], chunk.prompt_logprobs[1:], strict=False):
        expected = torch.log_softmax(llms.made[0].logits(before), dim=0)[token]
        assert found is not None
        assert (found.token_id, len(found.top)) == (token, 1)
        assert found.logprob == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(PromptTooLongError):
        await _collect(engine, GenerationRequest("more", (*prompt, 5), sampling))


async def test_logit_bias(engine: TensorRtLlmEngine) -> None:
    chunks = await _collect(engine, _request(logit_bias={42: 100.0}))
    assert _tokens(chunks) == [42] * 6


async def test_abort_and_closing_the_stream_stop_the_work(
    engine: TensorRtLlmEngine, llms: type[FakeLlm]
) -> None:
    chunks = []
    async for chunk in engine.generate(_request(max_tokens=400)):
        chunks.append(chunk)
        if len(chunks) == 3:
            await engine.abort("r")
    assert chunks[-1].finish_reason == "abort"
    assert len(chunks) < 10
    assert engine.stats().running == 0

    stream = engine.generate(_request(max_tokens=400))
    await anext(stream)
    await stream.aclose()
    assert engine.stats().running == 0
    await engine.abort("unknown")


async def test_a_failure_ends_the_choice_with_its_reason(
    engine: TensorRtLlmEngine, llms: type[FakeLlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llms, "broken", True)
    (chunk,) = await _collect(engine, _request())
    assert chunk.finish_reason == "error"
    assert "illegal memory access" in str(chunk.error)
    llms.made[0].alive = False
    with pytest.raises(EngineDeadError, match="shutting down"):
        await _collect(engine, _request())
    assert engine.stats().running == 0


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (_request("spanish"), UnknownMaskError, "'spanish'"),
        (replace(_request(), prompt_token_ids=()), InvalidRequestError, "empty"),
        (replace(_request(), prompt_token_ids=(5,) * 512), InvalidRequestError, "512"),
        (replace(_request(), prompt_token_ids=(9999,)), InvalidRequestError, "9999"),
        (_request(structured=StructuredOutput("json_object")), InvalidRequestError, "structured"),
    ],
)
async def test_requests_that_can_never_run(
    engine: TensorRtLlmEngine,
    request_: GenerationRequest,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        await _collect(engine, request_)
    assert engine.stats().running == 0


async def test_memory_budget_unloads_the_least_recently_used(
    built: Path, llms: type[FakeLlm]
) -> None:
    engine = TensorRtLlmEngine(built, memory_gib=2.5 * KV_GIB, kv_gib=KV_GIB)  # room for two
    for mask in ("french", "general", "code"):
        await _collect(engine, _request(mask))
    assert {llm.name for llm in llms.made if llm.alive} == {"general", "code"}
    await _collect(engine, _request("french"))
    assert {llm.name for llm in llms.made if llm.alive} == {"code", "french"}
    assert engine.stats().mask_switches == 3
    assert engine.stats().kv_total_bytes == 2 * int(KV_GIB * 2**30)
    await engine.close()
    assert not [llm for llm in llms.made if llm.alive]
    with pytest.raises(EngineDeadError):
        await _collect(engine, _request())


async def test_an_engine_in_use_is_not_unloaded(
    built: Path, llms: type[FakeLlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TensorRtLlmEngine(built, memory_gib=1.5 * KV_GIB, kv_gib=KV_GIB)  # room for one
    gate = asyncio.Event()
    monkeypatch.setattr(llms, "gate", gate)
    first = asyncio.create_task(_collect(engine, _request("general", id_="a")))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(_collect(engine, _request("french", id_="b")))
    third = asyncio.create_task(_collect(engine, _request("general", id_="c")))
    await asyncio.sleep(0.05)
    assert engine.stats().running == 1
    assert engine.stats().waiting == 2
    assert engine.stats().waiting_masks == ("french", "general")
    assert engine.stats().running_masks == ("general",)
    gate.set()
    answers = [_tokens(await task) for task in (first, second, third)]
    # In turn, the last one not overtaking the second.
    assert [llm.name for llm in llms.made] == ["general", "french", "general"]
    assert answers[0] == answers[2] != answers[1]
    await engine.close()


async def test_a_request_given_up_while_its_engine_loads_leaves_nothing_behind(
    built: Path, llms: type[FakeLlm]
) -> None:
    engine = TensorRtLlmEngine(built, kv_gib=KV_GIB)
    task = asyncio.create_task(_collect(engine, _request("french")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _collect(engine, _request("french"))
    assert engine.stats().running == 0
    assert engine.stats().waiting == 0
    await engine.close()


async def test_masks_are_unloaded_and_loaded_again(
    engine: TensorRtLlmEngine, built: Path, llms: type[FakeLlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    monkeypatch.setattr(llms, "gate", gate)
    running = asyncio.create_task(_collect(engine, _request("french")))
    await asyncio.sleep(0.05)
    await engine.unload_mask("french")
    with pytest.raises(UnknownMaskError):
        await _collect(engine, _request("french", id_="late"))
    french = next(llm for llm in llms.made if llm.name == "french")
    assert french.alive  # the running sequence finishes with it
    gate.set()
    assert (await running)[-1].finish_reason == "length"
    assert not french.alive
    with pytest.raises(MaskError, match=r"no engine for mask 'french'.*--extend"):
        await engine.load_mask("french", built / "masks/code.safetensors")
    info = await engine.load_mask("french", built / "masks/french.safetensors")
    assert info.name == "french"
    assert len(_tokens(await _collect(engine, _request("french")))) == 6
    with pytest.raises(MaskError, match="loaded already"):
        await engine.load_mask("french", built / "masks/french.safetensors")
    with pytest.raises(MaskError, match="default"):
        await engine.unload_mask("general")
    with pytest.raises(UnknownMaskError):
        await engine.unload_mask("spanish")
    with pytest.raises(MaskError):
        await engine.load_mask("bad", built / "engine.json")


async def test_a_mask_added_to_the_directory_can_be_loaded_at_once(
    built: Path, llms: type[FakeLlm], tmp_path: Path
) -> None:
    directory = tmp_path / "dir"
    shutil.copytree(built, directory)
    engine = TensorRtLlmEngine(directory, kv_gib=KV_GIB)
    model = built.parent / "hf"
    spanish = mask_file(model, tmp_path / "spanish.safetensors", 9)
    with pytest.raises(MaskError, match=f"--extend {directory} --model MODEL --mask spanish="):
        await engine.load_mask("spanish", spanish)
    extend(directory, model, {"spanish": spanish})
    await engine.load_mask("spanish", spanish)
    await _collect(engine, _request("spanish"))
    assert llms.made[-1].name == "spanish"
    await engine.close()


async def test_too_many_requests(built: Path, llms: type[FakeLlm]) -> None:
    engine = TensorRtLlmEngine(built, kv_gib=KV_GIB, max_requests=1)
    stream = engine.generate(_request(max_tokens=100))
    await anext(stream)
    with pytest.raises(EngineOverloadedError):
        await _collect(engine, _request(id_="second"))
    await stream.aclose()
    await _collect(engine, _request(id_="third"))
    await engine.close()


def test_what_cannot_be_opened(
    built: Path, llms: type[FakeLlm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineDirectoryError, match="more than memory_gib allows"):
        TensorRtLlmEngine(built, kv_gib=KV_GIB, memory_gib=KV_GIB / 2)
    with pytest.raises(EngineDirectoryError, match="less than one sequence of 512"):
        TensorRtLlmEngine(built, kv_gib=KV_GIB / 16)
    unbuilt = tmp_path / "unbuilt"
    shutil.copytree(built, unbuilt)
    details = json.loads((unbuilt / "engine.json").read_text())["details"]
    details["engines"]["general"]["built"] = False
    edit_manifest(unbuilt, details=details)
    with pytest.raises(EngineDirectoryError, match=r"no engine yet: run .*build\.sh"):
        TensorRtLlmEngine(unbuilt, kv_gib=KV_GIB)
    edit_manifest(unbuilt, details={"engines": {}})
    with pytest.raises(EngineDirectoryError, match=r"engine\.json: details: dtype: Field required"):
        TensorRtLlmEngine(unbuilt, kv_gib=KV_GIB)
    install(tmp_path / "newer", monkeypatch, version="1.3.0")
    with pytest.raises(ToolsMissingError, match=r"1\.3\.0"):
        TensorRtLlmEngine(built, kv_gib=KV_GIB)


def test_without_tensorrt_llm_opening_says_what_to_install(built: Path) -> None:
    with pytest.raises(ToolsMissingError, match=r"pip install tensorrt-llm==1\.2\.1"):
        TensorRtLlmEngine(built, kv_gib=KV_GIB)


def test_sampling_arguments() -> None:
    greedy = sampling_arguments(SamplingParams(temperature=0.0, min_tokens=2), (7, 8), 9)
    assert greedy["top_k"] == 1
    assert (greedy["end_id"], greedy["stop_token_ids"]) == (7, [8])
    assert (greedy["max_tokens"], greedy["min_tokens"]) == (9, 2)
    assert not greedy.keys() & {"temperature", "seed", "presence_penalty"}
    sampled = sampling_arguments(SamplingParams(temperature=0.5, presence_penalty=1.0), (7,), 9)
    # Unset, TensorRT-LLM would decode greedily, and with the same seed every time.
    assert (sampled["temperature"], sampled["top_p"], sampled["top_k"]) == (0.5, 1.0, 0)
    assert sampled["presence_penalty"] == 1.0
    other = sampling_arguments(SamplingParams(temperature=0.5), (7,), 9)
    assert sampled["seed"] != other["seed"]
