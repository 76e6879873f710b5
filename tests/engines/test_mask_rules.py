"""The same mask is refused for the same reason by every engine, and by the build."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from engines import mask_rules
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.directory.manifest import read_manifest
from engines.errors import MaskError, UnknownMaskError
from engines.reference.engine import ReferenceEngine
from engines.registry import run_builder
from engines.vllm_plugin.catalog import MaskCatalog
from maskgen.format.mask_file import read_mask, write_mask
from maskgen.format.pattern import Pattern
from maskgen.prune import PruneSettings, prune
from tests.tiny_model import make_tiny_llama

MaskOf = Callable[..., Path]
Load = Callable[[str, Path], Awaitable[object]]


class Opened:
    """One engine's loading and unloading; of vLLM's the part that needs no vLLM."""

    def __init__(self, target: str, directory: Path) -> None:
        self._engine: CpuEngine | ReferenceEngine | None = None
        if target == "vllm":
            self._catalog = MaskCatalog(directory, read_manifest(directory))
        elif target == "cpu":
            self._engine = CpuEngine(directory, kv_bytes=1 << 20)
        else:
            self._engine = ReferenceEngine(directory)

    async def load(self, name: str, path: Path) -> None:
        if self._engine is None:
            self._catalog.load(name, path)
        else:
            await self._engine.load_mask(name, path)

    async def unload(self, name: str) -> None:
        if self._engine is None:
            self._catalog.unload(name)
        else:
            await self._engine.unload_mask(name)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()


def build(
    target: str, model: Path, masks: dict[str, Path], out: Path, sealed: bool = False
) -> Path:
    run_builder(target, BuildRequest(model, "tiny", masks, out, sealed=sealed))
    return out


async def refusal(action: Callable[[], Awaitable[object]]) -> str:
    with pytest.raises((MaskError, UnknownMaskError)) as caught:
        await action()
    return str(caught.value)


@pytest.mark.parametrize("target", ["cpu", "reference", "vllm"])
async def test_every_engine_refuses_alike(
    target: str, tiny_model: Path, mask_of: MaskOf, tmp_path: Path
) -> None:
    good, other = mask_of(tiny_model), make_tiny_llama(tmp_path / "other", seed=5)
    engine = Opened(target, build(target, tiny_model, {"general": good}, tmp_path / "engine"))
    (tmp_path / "broken").write_bytes(b"123")
    cases = {
        ("../x", good): "'../x' cannot name a mask",
        ("general", good): "a mask named 'general' is loaded already",
        ("x", mask_of(other)): "mask 'x' was made for the model with base digest",
        ("x", mask_of(tiny_model, leave_out="up_proj")): "mask 'x' lists other layers than the",
        ("x", tmp_path / "broken"): "not a mask file",
        ("x", tmp_path / "missing"): "No such file",
    }
    for (name, path), message in cases.items():
        assert message in await refusal(lambda n=name, p=path: engine.load(n, p))
    assert "no mask named 'x' is loaded" in await refusal(lambda: engine.unload("x"))
    assert "'general' is the default mask" in await refusal(lambda: engine.unload("general"))
    await engine.close()


@pytest.mark.parametrize("target", ["cpu", "vllm"])
async def test_dense_and_sealed_directories_take_no_mask(
    target: str, tiny_model: Path, mask_of: MaskOf, tmp_path: Path
) -> None:
    good = mask_of(tiny_model)
    if target == "cpu":
        dense = Opened(target, build(target, tiny_model, {}, tmp_path / "dense"))
        assert "this engine is dense" in await refusal(lambda: dense.load("x", good))
        await dense.close()
    made = build(target, tiny_model, {"general": good}, tmp_path / "sealed", sealed=True)
    sealed = Opened(target, made)
    late = mask_of(tiny_model, 1)
    assert "this engine directory is sealed" in await refusal(lambda: sealed.load("x", late))
    await sealed.close()


@pytest.mark.parametrize("target", ["cpu", "reference", "vllm", "tensorrt-llm"])
def test_the_build_refuses_alike(
    target: str, tiny_model: Path, mask_of: MaskOf, tmp_path: Path
) -> None:
    good, other = mask_of(tiny_model), make_tiny_llama(tmp_path / "other", seed=5)
    out = tmp_path / "out"
    for masks, message in (
        ({"a b": good}, "'a b' cannot name a mask"),
        ({"x": mask_of(other)}, "mask 'x' was made for the model with base digest"),
        ({"g": good, "x": mask_of(tiny_model, leave_out="up_proj")}, "mask 'x' lists other layers"),
    ):
        with pytest.raises(MaskError, match=message):
            build(target, tiny_model, masks, out)
        assert not out.exists()


def test_the_first_layer_that_differs_is_named(mask_of: MaskOf, tiny_model: Path) -> None:
    mask = read_mask(mask_of(tiny_model))
    shapes = dict(mask.shapes)
    odd = max(shapes)
    del shapes[odd]
    layers = mask_rules.MaskedLayers(mask.pattern, shapes)
    with pytest.raises(MaskError, match=odd.replace(".", r"\.")):
        mask_rules.check_fits("x", mask, "cpu", mask.base_digest, layers)


@pytest.mark.parametrize(
    ("target", "runs", "instead"),
    [
        ("cpu", r"2:4 \(4:8, .*\)", "cpu with --values int8 or int4, reference"),
        ("vllm", r"2:4 \(4:8, .*\)", "vllm with --values int8 or int4, reference"),
        ("tensorrt-llm", "2:4", "reference"),
    ],
)
def test_other_patterns_are_refused_with_who_runs_them(
    target: str, runs: str, instead: str, tiny_model: Path, tmp_path: Path
) -> None:
    wide = wide_mask(tiny_model, tmp_path / "wide.safetensors")
    out = tmp_path / "out"
    said = rf"'w' is 16:32; {target} runs {runs}: build for .*{instead}"
    with pytest.raises(MaskError, match=said):
        build(target, tiny_model, {"w": wide}, out)
    assert not out.exists()


async def test_masks_of_a_directory_share_a_pattern(
    tiny_model: Path, mask_of: MaskOf, tmp_path: Path
) -> None:
    wide = wide_mask(tiny_model, tmp_path / "wide.safetensors")
    opened = Opened("reference", build("reference", tiny_model, {"w": wide}, tmp_path / "out"))
    other = mask_of(tiny_model)
    assert "is 2:4, the default mask 16:32" in await refusal(lambda: opened.load("x", other))
    await opened.close()


def wide_mask(model: Path, path: Path) -> Path:
    mask = prune(model, None, PruneSettings("magnitude", dtype="fp32", pattern=Pattern(16, 32)))
    write_mask(path, mask.mask)
    return path
