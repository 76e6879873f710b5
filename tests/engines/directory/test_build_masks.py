"""Building with masks that are stored as differences to a parent, for every target."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines.directory.build import BuildRequest
from engines.directory.manifest import read_manifest
from engines.registry import TARGETS, open_engine, run_builder
from engines.sampling import SamplingParams
from engines.tensorrt_llm.version import ToolsMissingError
from maskgen.format.mask_file import read_mask, read_metadata, write_mask
from maskgen.models import cached_directory
from maskgen.transform.absorb import transformed
from tests.engines.conftest import nearby_mask
from tests.engines.oracle import answers
from twofour.shipped_masks import masks_in

ROOT = Path(__file__).parents[3]
ALIAS = "smollm2-135m"
COMMITTED = masks_in(ROOT / "masks" / f"{ALIAS}-free")


@pytest.fixture(scope="module")
def masks(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("differences")
    general = read_mask(mask_of(tiny_model))
    files = {name: folder / f"{name}.safetensors" for name in ("general", "python", "french")}
    write_mask(files["general"], general)
    for seed, name in enumerate(("python", "french")):
        near = read_mask(nearby_mask(files["general"], folder / "near", 0.01, seed))
        write_mask(files[name], replace(near, domain=name), parent=general)
        assert read_mask(files[name]).parent_digest == general.digest
    (folder / "near").unlink()
    return files


def build(target: str, model: Path, masks: dict[str, Path], out: Path) -> None:
    # Without TensorRT-LLM its builder writes everything but the engines, and says so.
    missing = ToolsMissingError if target == "tensorrt-llm" else ()
    with contextlib.suppress(missing):
        run_builder(target, BuildRequest(model, "tiny", masks, out))


def check(out: Path, masks: dict[str, Path]) -> None:
    manifest = read_manifest(out)
    assert [record.name for record in manifest.masks] == list(masks)
    for record in manifest.masks:
        stored = read_mask(out / record.file)
        assert stored.digest == record.digest == read_mask(masks[record.name]).digest
        assert stored.parent_digest is None  # the files in the directory stand alone


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("order", [("general", "python", "french"), ("python", "general")])
def test_masks_with_a_parent_build_for_every_target(
    target: str, order: tuple[str, ...], tiny_model: Path, masks: dict[str, Path], tmp_path: Path
) -> None:
    chosen = {name: masks[name] for name in order}
    build(target, tiny_model, chosen, tmp_path / "engine")
    check(tmp_path / "engine", chosen)


async def test_a_mask_with_a_parent_is_served(
    tiny_model: Path, masks: dict[str, Path], tmp_path: Path
) -> None:
    build("cpu", tiny_model, masks, tmp_path / "engine")
    build("cpu", tiny_model, {"python": masks["python"]}, tmp_path / "alone")
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    found = []
    for directory in (tmp_path / "engine", tmp_path / "alone"):
        engine = open_engine(directory, kv_bytes=1 << 20)
        found += await answers(engine, list(range(5, 40)), params, mask="python")
        await engine.close()
    assert found[0].token_ids == found[1].token_ids


@pytest.mark.slow
@pytest.mark.skipif(
    not cached_directory(ALIAS).is_dir(), reason="the model is not in the cache folder"
)
def test_all_committed_masks_build(tmp_path: Path) -> None:
    masks, transform = COMMITTED.files, COMMITTED.transform
    assert transform is not None
    stated = {name: read_metadata(file) for name, file in masks.items()}
    assert sum("parent_digest" in metadata for metadata in stated.values()) >= 6
    model = transformed(cached_directory(ALIAS), transform)
    build("cpu", model, masks, tmp_path / "engine")
    for record in read_manifest(tmp_path / "engine").masks:
        stored = read_metadata(tmp_path / "engine" / record.file)
        assert stored["mask_digest"] == record.digest == stated[record.name]["mask_digest"]
        assert "parent_digest" not in stored


def test_the_readme_builds_a_domain_mask_that_has_a_parent() -> None:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^twofour build .*$", text, re.M)
    (folder,) = re.findall(r"^masks=(.*)$", text, re.M)
    words = shlex.split(command.replace("$masks", folder))
    pairs = [words[i + 1].split("=") for i, word in enumerate(words) if word == "--mask"]
    stated = [read_metadata(ROOT / file) for _, file in pairs]
    assert ["parent_digest" in metadata for metadata in stated] == [False, True]
