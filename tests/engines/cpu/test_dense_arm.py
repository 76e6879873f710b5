"""The dense model beside the masks of one directory: the answers of a dense engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.base import GenerationRequest
from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.directory.manifest import DENSE_FILE, MANIFEST_FILE, read_manifest
from engines.errors import EngineDirectoryError, MaskError, UnknownMaskError
from engines.registry import run_builder
from engines.sampling import SamplingParams
from tests.engines.conftest import FORMS, edit_manifest, nearby_mask
from tests.engines.oracle import answers, many
from tests.tiny_model import SAMPLE_TEXT

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=0)
KV = 8 << 20


@pytest.fixture(scope="module", params=FORMS)
def engines(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    mask_of: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Directories of the dense model, of masks, and of both."""
    values, pattern = FORMS[request.param]
    folder = tmp_path_factory.mktemp(request.param.replace(":", "of"))
    general = mask_of(tiny_model, leave_out="up_proj", pattern=pattern)
    near = nearby_mask(general, folder / "near.safetensors", 0.005)
    masks = {"general": general, "near": near}
    made = {"dense": {}, "masks": masks, "both": masks}
    for name, held in made.items():
        build(
            BuildRequest(
                tiny_model, "tiny", held, folder / name, with_dense=name == "both", values=values
            )
        )
    return {name: folder / name for name in made}


async def test_answers_are_those_of_engines_with_one_of_both(engines: dict[str, Path]) -> None:
    prompts = None
    expected = {}
    for name in ("dense", "masks"):
        engine = CpuEngine(engines[name], kv_bytes=KV)
        prompts = [engine.codec.encode(SAMPLE_TEXT)[start : start + 9] for start in (0, 20, 40)]
        for mask in (None,) if name == "dense" else ("general", "near"):
            told = [await answers(engine, p, GREEDY, mask=mask) for p in prompts]
            expected[mask or "dense"] = [one[0] for one in told]
        await engine.close()
    assert prompts is not None
    engine = CpuEngine(engines["both"], kv_bytes=KV)
    for mask, told in expected.items():
        found = [(await answers(engine, p, GREEDY, mask=mask))[0] for p in prompts]
        assert found == told, f"{mask} alone"
    # The same in one batch.
    names = ["dense", "general", "near"] * 2
    mixed = await many(engine, [prompts[0]] * len(names), GREEDY, names)
    for mask, answer in zip(names, mixed, strict=True):
        assert answer.token_ids == expected[mask][0].token_ids, f"{mask} beside others"
    await engine.switch_base("near")
    assert (await answers(engine, prompts[1], GREEDY, mask="dense"))[0] == expected["dense"][1]
    await engine.close()


async def test_its_memory_is_counted(engines: dict[str, Path]) -> None:
    found = {}
    for name, directory in engines.items():
        engine = CpuEngine(directory, kv_bytes=KV)
        found[name] = engine.describe()
        await engine.close()
    assert found["dense"].dense_bytes is None
    assert found["masks"].dense_bytes is None
    own = found["both"].dense_bytes
    assert own is not None
    assert found["both"].weight_bytes == found["masks"].weight_bytes + own
    # The head, and the layers that no mask lists, are there once.
    assert 0 < own < found["dense"].weight_bytes
    assert own == pytest.approx((engines["both"] / DENSE_FILE).stat().st_size, rel=0.2)
    assert found["both"].sparse_layers == found["masks"].sparse_layers


async def test_it_is_mapped_like_other_weights(engines: dict[str, Path]) -> None:
    texts = []
    for mapped in (False, True):
        engine = CpuEngine(engines["both"], kv_bytes=KV, map_weights=mapped)
        texts.append((await answers(engine, [5, 6, 7], GREEDY, mask="dense"))[0])
        await engine.close()
    assert texts[0] == texts[1]


async def test_who_runs_it_is_counted(engines: dict[str, Path]) -> None:
    engine = CpuEngine(engines["both"], kv_bytes=KV)
    seen: tuple[str, ...] = ()
    for _ in range(20):  # a request may have ended before this process gets to look
        stream = engine.generate(_request("dense"))
        await anext(stream)
        seen = engine.stats().running_masks
        await stream.aclose()
        if seen:
            break
    assert seen == ("dense",)
    await engine.close()


async def test_without_it_there_is_none(engines: dict[str, Path]) -> None:
    engine = CpuEngine(engines["masks"], kv_bytes=KV)
    with pytest.raises(UnknownMaskError, match="dense"):
        await anext(engine.generate(_request("dense")))
    await engine.close()
    assert "dense" not in (engines["masks"] / MANIFEST_FILE).read_text()
    assert read_manifest(engines["both"]).dense


def _request(mask: str) -> GenerationRequest:
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    return GenerationRequest("r", (5, 6, 7), params, mask)


def test_what_cannot_be_combined_is_refused(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    mask, out = mask_of(tiny_model), tmp_path / "out"

    def request(masks: dict[str, Path], **options: bool) -> BuildRequest:
        return BuildRequest(tiny_model, "tiny", masks, out, with_dense=True, **options)

    with pytest.raises(EngineDirectoryError, match="do not seal"):
        build(request({"general": mask}, sealed=True))
    with pytest.raises(EngineDirectoryError, match="dense model already"):
        build(request({}))
    for target in ("reference", "vllm", "tensorrt-llm"):
        with pytest.raises(ValueError, match=f"target {target} cannot hold the dense model"):
            run_builder(target, request({"general": mask}))
    with pytest.raises(MaskError, match="'dense' cannot name a mask"):
        build(request({"general": mask, "dense": mask}))
    assert not out.exists()


async def test_no_mask_is_loaded_under_its_name(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    mask = mask_of(tiny_model)
    build(BuildRequest(tiny_model, "tiny", {"general": mask}, tmp_path / "engine"))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=KV)
    with pytest.raises(MaskError, match="'dense' cannot name a mask"):
        await engine.load_mask("dense", mask)
    await engine.close()
    [record] = read_manifest(tmp_path / "engine").model_dump(mode="json")["masks"]
    edit_manifest(tmp_path / "engine", masks=[record | {"name": "dense"}], default_mask="dense")
    with pytest.raises(EngineDirectoryError, match="a mask is called 'dense'"):
        read_manifest(tmp_path / "engine")


@pytest.mark.parametrize("damage", ["flipped", "missing", "unlisted", "unsaid"])
def test_damage_is_noticed(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "engine"
    masks = {"general": mask_of(tiny_model)}
    manifest = build(BuildRequest(tiny_model, "tiny", masks, out, with_dense=True))
    match damage:
        case "flipped":
            data = bytearray((out / DENSE_FILE).read_bytes())
            data[-1] ^= 1
            (out / DENSE_FILE).write_bytes(data)
        case "missing":
            (out / DENSE_FILE).unlink()
        case "unlisted":
            files = manifest.model_dump(mode="json")["files"]
            del files[DENSE_FILE]
            edit_manifest(out, files=files)
        case "unsaid":
            edit_manifest(out, required_features=[])
    with pytest.raises(EngineDirectoryError, match="dense"):
        CpuEngine(out, kv_bytes=KV)
