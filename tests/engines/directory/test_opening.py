"""Opening engine directories: what is verified, and what a running engine does not depend on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.directory.manifest import read_manifest
from engines.errors import EngineDirectoryError, MaskError
from engines.registry import open_engine, run_builder
from engines.sampling import SamplingParams
from tests.engines.conftest import as_version_1, nearby_mask
from tests.engines.oracle import answers

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
PROMPT = list(range(5, 25))


@pytest.fixture(scope="module")
def masks(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("opening")
    general = mask_of(tiny_model)
    near = {f"near{i}": nearby_mask(general, folder / f"{i}", 0.01, seed=i) for i in (1, 2)}
    return {"general": general, "far": mask_of(tiny_model, 1)} | near


@pytest.fixture
def built(tiny_model: Path, masks: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    def make(target: str = "cpu", *names: str) -> Path:
        chosen = {name: masks[name] for name in names or ("general", "near1")}
        out = tmp_path / target
        request = BuildRequest(tiny_model, "tiny", chosen, out, overwrite=True)
        run_builder(target, request)
        return out

    return make


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_a_changed_bit_in_any_file_is_refused(target: str, built: Callable[..., Path]) -> None:
    directory = built(target)
    names = [name for name in read_manifest(directory).files if "complement" not in name]
    assert len(names) >= 6
    for name in names:
        flip(directory / name, -9)
        with pytest.raises(EngineDirectoryError, match=f"{name} is not the file that was built"):
            open_engine(directory)
        flip(directory / name, -9)


async def test_the_complement_is_verified_at_its_first_use(
    built: Callable[..., Path], masks: dict[str, Path]
) -> None:
    directory = built("cpu", "general")
    flip(directory / "complement.safetensors", -9)
    engine = open_engine(directory, kv_bytes=1 << 20)
    (expected,) = await answers(engine, PROMPT, GREEDY)
    with pytest.raises(
        MaskError, match=r"'x' cannot be loaded: complement\.safetensors is not, or no longer"
    ):
        await engine.load_mask("x", masks["near1"])
    assert [mask.name for mask in engine.describe().masks] == ["general"]
    flip(directory / "complement.safetensors", -9)
    await engine.load_mask("x", masks["near1"])
    assert (await answers(engine, PROMPT, GREEDY, salt="again")) == [expected]
    await engine.close()


async def test_verifying_can_be_skipped(built: Callable[..., Path]) -> None:
    directory = built("cpu", "general")
    flip(directory / "weights.safetensors", -9)
    with pytest.raises(EngineDirectoryError, match="not the file"):
        open_engine(directory, kv_bytes=1 << 20)
    await open_engine(directory, kv_bytes=1 << 20, verify=False).close()


async def test_progress_is_told(built: Callable[..., Path]) -> None:
    directory = built("cpu", "general")
    told: list[tuple[str, int, int]] = []
    engine = open_engine(directory, lambda *step: told.append(step), kv_bytes=1 << 20)
    await engine.close()
    size = (directory / "weights.safetensors").stat().st_size
    assert ("reading weights", size, size) in told
    assert {what for what, _, _ in told} == {"verifying", "reading weights"}


async def test_a_directory_without_digests_opens_with_one_warning(
    built: Callable[..., Path], masks: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    directory = built()
    engine = open_engine(directory, kv_bytes=1 << 20)
    expected = await answers(engine, PROMPT, GREEDY, mask="near1")
    await engine.close()
    assert not caplog.records
    as_version_1(directory)
    with caplog.at_level(logging.WARNING):
        engine = open_engine(directory, kv_bytes=1 << 20)
    (record,) = caplog.records
    assert "build it again with `twofour build --overwrite`" in record.getMessage()
    assert await answers(engine, PROMPT, GREEDY, mask="near1") == expected
    await engine.load_mask("near2", masks["near2"])
    (directory / "complement.safetensors").touch()  # nothing says whether it is the same now
    with pytest.raises(MaskError, match="no longer, what it was"):
        await engine.load_mask("far", masks["far"])
    await engine.close()


async def test_after_a_rebuild_in_place_masks_of_the_old_base_are_refused(
    built: Callable[..., Path], masks: dict[str, Path]
) -> None:
    directory = built()
    engine = open_engine(directory, kv_bytes=1 << 20)
    expected = [await answers(engine, PROMPT, GREEDY, mask=m) for m in ("general", "near1")]
    fresh = open_engine(directory, kv_bytes=1 << 20)
    await fresh.load_mask("near2", masks["near2"])
    expected.append(await answers(fresh, PROMPT, GREEDY, mask="near2"))
    await fresh.close()
    built("cpu", "far")  # the same model, cut elsewhere
    with pytest.raises(MaskError, match="it was rebuilt or damaged; start the engine again"):
        await engine.load_mask("near2", masks["near2"])
    for name, before in zip(("general", "near1"), expected, strict=False):
        assert await answers(engine, PROMPT, GREEDY, mask=name, salt="again") == before
    built()  # as it was
    await engine.load_mask("near2", masks["near2"])
    assert await answers(engine, PROMPT, GREEDY, mask="near2") == expected[2]
    await engine.close()


TRUNCATE = """
import asyncio, os, sys
from pathlib import Path
from engines.errors import MaskError
from engines.registry import open_engine
from engines.sampling import SamplingParams
from tests.engines.oracle import answers

async def main():
    directory, mask = Path(sys.argv[1]), Path(sys.argv[2])
    engine = open_engine(directory, kv_bytes=1 << 20)
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    for path in directory.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    for name in ("general", "near1"):
        (answer,) = await answers(engine, range(5, 25), params, mask=name)
        print(answer.token_ids)
    try:
        await engine.load_mask("x", mask)
    except MaskError as error:
        print(error)
    await engine.close()

asyncio.run(main())
"""


async def test_truncating_every_file_does_not_hurt_a_running_engine(
    built: Callable[..., Path], masks: dict[str, Path]
) -> None:
    directory = built()
    engine = open_engine(directory, kv_bytes=1 << 20)
    expected = [await answers(engine, PROMPT, GREEDY, mask=m) for m in ("general", "near1")]
    await engine.close()
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATE, str(directory), str(masks["near2"])],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *tokens, refusal = done.stdout.splitlines()
    assert [json.loads(line) for line in tokens] == [a.token_ids for (a,) in expected]
    assert "complement.safetensors is not, or no longer, what it was" in refusal


async def test_mapped_weights_give_the_same_answers(built: Callable[..., Path]) -> None:
    directory = built()
    found = []
    for options in ({}, {"map_weights": True}):
        engine = open_engine(directory, kv_bytes=1 << 20, **options)
        assert isinstance(engine, CpuEngine)
        found.append([await answers(engine, PROMPT, GREEDY, mask=m) for m in ("general", "near1")])
        await engine.close()
    assert found[0] == found[1]


def test_masks_that_are_not_the_manifests(
    built: Callable[..., Path], masks: dict[str, Path]
) -> None:
    directory = built()
    as_version_1(directory, sizes=False)
    shutil.copyfile(masks["near2"], directory / "masks" / "near1.safetensors")
    with pytest.raises(EngineDirectoryError, match="holds another mask than engine"):
        open_engine(directory)
    (directory / "masks" / "near1.safetensors").write_bytes(b"x")
    with pytest.raises(EngineDirectoryError, match=r"mask 'near1': .*not a mask file"):
        open_engine(directory)


def test_a_file_that_leads_out_of_the_directory(built: Callable[..., Path], tmp_path: Path) -> None:
    directory = built()
    (directory / "config.json").rename(tmp_path / "config.json")
    (directory / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(EngineDirectoryError, match="lies outside the directory"):
        open_engine(directory)
