"""Engine directories with seeded damage: one line, or the answers of the whole directory.

A crash ends the test run, a hang its time limit, a huge allocation the memory limit.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engines.base import Engine
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.directory.manifest import MANIFEST_FILE, read_manifest
from engines.errors import EngineDirectoryError, InvalidRequestError, MaskError
from engines.registry import open_engine, run_builder
from engines.sampling import SamplingParams
from tests.damage import check_error, damaged, memory_limit
from tests.engines.conftest import VALUES, as_version_1, nearby_mask
from tests.engines.oracle import answers

GREEDY = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logprobs=0)
PROMPT = list(range(5, 15))
OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"kv_bytes": 1 << 20}, "reference": {}}
COUNTS = [("cpu", "bf16", 120), ("cpu", "int8", 40), ("cpu", "int4", 40), ("reference", "bf16", 24)]


@pytest.fixture(scope="module")
def whole(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("whole")
    general = mask_of(tiny_model, leave_out="o_proj")
    masks = {"general": general, "far": nearby_mask(general, folder / "far", 0.3)}
    masks["near"] = nearby_mask(general, folder / "near", 0.01)

    def make(target: str, values: str = "bf16") -> Path:
        out = folder / f"{target}-{values}"
        if not out.exists():
            request = BuildRequest(tiny_model, "tiny", masks, out, values=VALUES[values])
            run_builder(target, request)
        return out

    return make


def files_of(directory: Path) -> list[str]:
    return [MANIFEST_FILE, *read_manifest(directory).files]


async def answers_of(engine: Engine) -> dict[str, Any]:
    """What it answers under every mask that it has, by the mask's digest."""
    found = {}
    for mask in engine.describe().masks:
        (answer,) = await answers(engine, PROMPT, GREEDY, mask=mask.name)
        assert answer.error is None
        found[mask.digest] = answer
    return found


@pytest.mark.parametrize(("target", "values", "count"), COUNTS)
async def test_damage_is_refused_or_harmless(
    target: str, values: str, count: int, whole: Callable[..., Path], tmp_path: Path
) -> None:
    directory, options = whole(target, values), OPTIONS[target]
    engine = open_engine(directory, **options)
    expected = await answers_of(engine)
    await engine.close()
    names = files_of(directory)
    outcomes: Counter[str] = Counter()
    for seed in range(count):
        rng = random.Random(seed)
        folder = fresh(directory, tmp_path / "damaged")
        name = MANIFEST_FILE if rng.random() < 0.6 else rng.choice(names)
        (folder / name).write_bytes(damaged(folder / name, rng))
        try:
            with memory_limit(4 << 30):
                engine = open_engine(folder, **options)
        except EngineDirectoryError as error:
            outcomes["refused"] += 1
            check_error(error, folder)
            continue
        outcomes["opened"] += 1
        assert name == MANIFEST_FILE or "complement" in name, f"seed {seed}: {name} was not noticed"
        for digest, answer in (await answers_of(engine)).items():
            assert answer == expected[digest], f"seed {seed}"
        await engine.close()
    assert outcomes["refused"] > count // 3, outcomes


@pytest.mark.parametrize(("target", "values", "count"), COUNTS)
async def test_damage_that_is_not_looked_for_harms_nothing_outside(
    target: str, values: str, count: int, whole: Callable[..., Path], tmp_path: Path
) -> None:
    # Without digests the answers may be wrong; all else holds.
    first = Path(shutil.copytree(whole(target), tmp_path / "whole"))
    as_version_1(first, sizes=False)
    names = [name for name in files_of(whole(target)) if "complement" not in name]
    outcomes: Counter[str] = Counter()
    for seed in range(count):
        rng = random.Random(seed)
        folder = fresh(first, tmp_path / "damaged")
        name = rng.choice(names)
        (folder / name).write_bytes(damaged(folder / name, rng))
        try:
            with memory_limit(4 << 30):
                engine = open_engine(folder, **OPTIONS[target])
        except EngineDirectoryError as error:
            outcomes["refused"] += 1
            check_error(error, folder)
            continue
        outcomes["opened"] += 1
        for mask in engine.describe().masks:
            with suppress(InvalidRequestError):  # of a context that is too small
                await answers(engine, PROMPT, GREEDY, mask=mask.name)
        await engine.close()
    assert min(outcomes["opened"], outcomes["refused"]) > count // 20, outcomes


@pytest.mark.parametrize("verify", [True, False])
def test_what_vllm_is_given(verify: bool, whole: Callable[..., Path], tmp_path: Path) -> None:
    directory = whole("vllm")
    names = files_of(directory)
    outcomes: Counter[str] = Counter()
    for seed in range(80):
        rng = random.Random(seed)
        folder = fresh(directory, tmp_path / "damaged")
        name = rng.choice(names)
        (folder / name).write_bytes(damaged(folder / name, rng))
        if not verify and name != MANIFEST_FILE:
            as_version_1(folder, sizes=False)
        try:
            with memory_limit(4 << 30):
                open_vllm(folder)
        except (EngineDirectoryError, MaskError) as error:
            outcomes["refused"] += 1
            check_error(error, folder)
            continue
        outcomes["opened"] += 1
        assert name == MANIFEST_FILE or not verify, f"seed {seed}: {name} was not noticed"
    assert outcomes["refused"] > 25, outcomes


@pytest.mark.parametrize("target", ["cpu", "reference", "vllm"])
@pytest.mark.parametrize("how", ["missing", "empty", "folder", "fifo", "loop", "text"])
def test_files_that_are_something_else(
    how: str, target: str, whole: Callable[..., Path], tmp_path: Path
) -> None:
    directory = whole(target)
    for name in files_of(directory):
        if "complement" in name:
            continue
        folder = fresh(directory, tmp_path / "damaged")
        path = folder / name
        path.unlink()
        match how:
            case "empty":
                path.touch()
            case "folder":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "loop":
                path.symlink_to(path)
            case "text":
                path.write_text("this is no such file")
        with pytest.raises(EngineDirectoryError) as caught:
            OPENERS[target](folder)
        check_error(caught.value, folder)


def fresh(directory: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(directory, folder))


def open_vllm(directory: Path) -> None:
    """What the engine for vLLM reads before vLLM does."""
    from engines.directory.opening import open_directory
    from engines.text import TextCodec
    from engines.vllm_plugin.catalog import MaskCatalog
    from engines.vllm_plugin.weights import MaskedWeights

    manifest = open_directory(directory, "vllm")
    TextCodec(directory)
    MaskCatalog(directory, manifest)
    weights = MaskedWeights(directory, manifest.identity)
    for record in manifest.masks:
        codes = weights.read(directory / record.file, record.digest)
        weights.values(codes, codes)


OPENERS: dict[str, Callable[[Path], object]] = {
    "cpu": lambda directory: CpuEngine(directory, **OPTIONS["cpu"]),
    "reference": open_engine,
    "vllm": open_vllm,
}
