"""TensorRT-LLM directories with seeded damage, or rebuilt under a running engine."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from engines.base import GenerationRequest
from engines.directory.build import BuildRequest
from engines.directory.manifest import MANIFEST_FILE, read_manifest
from engines.errors import EngineDirectoryError, MaskError
from engines.sampling import SamplingParams
from engines.tensorrt_llm.build import build, extend
from engines.tensorrt_llm.engine import TensorRtLlmEngine
from tests.damage import check_error, damaged, memory_limit
from tests.engines.tensorrt_llm.fake_llm import FakeLlm, install_fake
from tests.engines.tensorrt_llm.helpers import mask_file
from tests.engines.tensorrt_llm.standins import install
from tests.tiny_model import make_tiny_llama

KV_GIB = 2.0**-6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture(autouse=True)
def llms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeLlm]:
    install(tmp_path / "tools", monkeypatch)
    return install_fake(monkeypatch)


def request_of(model: Path, out: Path, *seeds: int) -> BuildRequest:
    names = ("general", "french")
    folder = model.parent
    masks = {n: mask_file(model, folder / f"{n}{s}", s) for n, s in zip(names, seeds, strict=False)}
    return BuildRequest(model, "tiny", masks, out, overwrite=True)


async def tokens(engine: TensorRtLlmEngine, mask: str) -> list[int]:
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    request = GenerationRequest("r", (5, 6, 7), params, mask)
    return [token async for chunk in engine.generate(request) for token in chunk.token_ids]


async def test_damage_is_refused_or_harmless(model: Path, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    build(request_of(model, whole, 0, 1))
    engine = TensorRtLlmEngine(whole, kv_gib=KV_GIB)
    expected = {name: await tokens(engine, name) for name in ("general", "french")}
    await engine.close()
    names = list(read_manifest(whole).files)
    outcomes: Counter[str] = Counter()
    for seed in range(120):
        rng = random.Random(seed)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        name = MANIFEST_FILE if rng.random() < 0.6 else rng.choice(names)
        path = folder / name
        if path.suffix == ".engine":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.write_bytes(damaged(path, rng))
        try:
            with memory_limit(4 << 30):
                engine = TensorRtLlmEngine(folder, kv_gib=KV_GIB)
        except EngineDirectoryError as error:
            outcomes["refused"] += 1
            check_error(error, folder)
            continue
        outcomes["opened"] += 1
        assert name == MANIFEST_FILE, f"seed {seed}: {name} was not noticed"
        for mask in engine.describe().masks:
            if mask.name in expected:
                assert await tokens(engine, mask.name) == expected[mask.name]
        await engine.close()
    assert outcomes["refused"] > 60, outcomes


async def test_an_engine_that_is_loaded_later_is_the_one_that_was_there(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "engine"
    build(request_of(model, out, 0, 1))
    engine = TensorRtLlmEngine(out, kv_gib=KV_GIB)
    expected = await tokens(engine, "general")
    # Built again with other masks under the same names: `french` was not loaded yet.
    build(request_of(model, out, 2, 3))
    # The stand-in writes the same bytes for any weights; TensorRT would not.
    path = out / "engines" / "french" / "rank0.engine"
    content = path.read_bytes()
    path.write_text("of another mask")
    with pytest.raises(EngineDirectoryError, match="not, or no longer, what it was"):
        await tokens(engine, "french")
    assert await tokens(engine, "general") == expected
    path.write_bytes(content)
    late = mask_file(model, tmp_path / "late", 5)
    extend(out, model, {"late": late})
    with pytest.raises(MaskError, match="was rebuilt since it was opened"):
        await engine.load_mask("late", late)
    await engine.close()


async def test_masks_that_are_added_are_verified(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    build(request_of(model, out, 0, 1))
    engine = TensorRtLlmEngine(out, kv_gib=KV_GIB)
    late = mask_file(model, tmp_path / "late", 5)
    extend(out, model, {"late": late})
    await engine.load_mask("late", late)
    path = out / "engines" / "late" / "rank0.engine"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(EngineDirectoryError, match="not, or no longer, what it was"):
        await tokens(engine, "late")
    path.write_bytes(content)
    assert len(await tokens(engine, "late")) == 4
    await engine.close()
