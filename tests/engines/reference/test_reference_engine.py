"""The oracle itself: the reference engine against plain transformers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from engines.base import GenerationChunk, GenerationRequest
from engines.directory.build import BuildRequest
from engines.directory.manifest import read_manifest
from engines.errors import EngineDirectoryError, MaskError, PromptTooLongError, UnknownMaskError
from engines.reference.build import build
from engines.reference.engine import ReferenceEngine
from engines.registry import open_engine
from engines.sampling import SamplingParams
from maskgen.format.mask_file import read_mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes
from tests.engines.conftest import mask_of_experts, mask_of_router
from tests.engines.oracle import Oracle, answers, check_greedy
from tests.tiny_model import make_tiny_llama


async def collect(chunks: AsyncIterator[GenerationChunk]) -> list[GenerationChunk]:
    return [chunk async for chunk in chunks]


@pytest.fixture(scope="module")
def directory(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("reference") / "engine"
    masks = {"general": mask_of(tiny_model, 0), "other": mask_of(tiny_model, 1)}
    build(BuildRequest(tiny_model, "tiny", masks, out))
    return out


def greedy_by_hand(model_dir: Path, mask_file: Path, prompt: list[int], steps: int) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    mask = read_mask(mask_file)
    with torch.no_grad():
        for layer, codes in mask.codes.items():
            model.get_submodule(layer).weight.mul_(
                torch.from_numpy(keep_from_codes(codes, TWO_FOUR))
            )
        ids = list(prompt)
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_layers_that_transformers_keeps_otherwise_are_refused_at_build(
    mixtral: Path, tmp_path: Path
) -> None:
    router = mask_of_router(mixtral, tmp_path / "router.safetensors")
    with pytest.raises(MaskError, match=r"moe\.gate, which MixtralForCausalLM .* keeps neither"):
        build(BuildRequest(mixtral, "m", {"general": router}, tmp_path / "out"))
    unknown = make_tiny_llama(tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    with pytest.raises(EngineDirectoryError, match="cannot load"):
        build(BuildRequest(unknown, "u", {}, tmp_path / "out"))
    short = make_tiny_llama(tmp_path / "short")
    tensors = load_file(short / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, short / "model.safetensors")
    with pytest.raises(EngineDirectoryError, match="1 are missing"):
        build(BuildRequest(short, "s", {}, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    build(BuildRequest(mixtral, "m", {}, tmp_path / "dense"))
    assert ReferenceEngine(tmp_path / "dense").describe().masks == ()


async def test_experts_are_masked(mixtral: Path, tmp_path: Path) -> None:
    mask = mask_of_experts(mixtral, tmp_path / "experts.safetensors")
    build(BuildRequest(mixtral, "m", {"general": mask}, tmp_path / "out"))
    engine = ReferenceEngine(tmp_path / "out")
    prompt = engine.codec.encode("The river carried")
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=0)
    (answer,) = await answers(engine, prompt, params)
    await engine.close()
    agreement = check_greedy(Oracle(mixtral, mask), prompt, answer, margin=1e-3, tolerance=1e-3)
    assert agreement.steps == 12


@pytest.mark.parametrize(("mask", "seed"), [("general", 0), ("other", 1), (None, 0)])
async def test_greedy_equals_the_masked_model_without_a_cache(
    directory: Path,
    tiny_model: Path,
    mask_of: Callable[..., Path],
    mask: str | None,
    seed: int,
) -> None:
    engine = open_engine(directory)
    assert isinstance(engine, ReferenceEngine)
    prompt = engine.codec.encode("The river carried")
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    chunks = await collect(engine.generate(GenerationRequest("a", tuple(prompt), params, mask)))
    await engine.close()
    tokens = [t for chunk in chunks for t in chunk.token_ids]
    assert tokens == greedy_by_hand(tiny_model, mask_of(tiny_model, seed), prompt, 12)
    assert chunks[-1].finish_reason == "length"


async def test_requests_that_cannot_run_are_refused(directory: Path, tmp_path: Path) -> None:
    engine = open_engine(directory)
    with pytest.raises(PromptTooLongError, match="512"):
        await collect(engine.generate(GenerationRequest("a", (5,) * 512)))
    with pytest.raises(UnknownMaskError, match="nope"):
        await collect(engine.generate(GenerationRequest("a", (5,), mask="nope")))
    with pytest.raises(MaskError, match="loaded already"):
        await engine.load_mask("general", tmp_path / "x")
    await engine.close()


async def test_a_mask_of_another_model_is_refused(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    from tests.tiny_model import make_tiny_llama

    other = make_tiny_llama(tmp_path / "other", seed=7)
    with pytest.raises(MaskError, match="base digest"):
        build(BuildRequest(tiny_model, "tiny", {"x": mask_of(other)}, tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]


def test_the_manifest_says_what_was_built(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert [m.name for m in manifest.masks] == ["general", "other"]
    assert manifest.default_mask == "general"
    assert manifest.mask("general").changed_share == 0.0
    assert 0.7 < manifest.mask("other").changed_share < 0.95
