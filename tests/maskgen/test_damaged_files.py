"""Mask files and model directories with seeded damage: one line, or the right answer.

A crash ends the test run, a hang its time limit, a huge allocation the memory limit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from maskgen.apply import apply_mask
from maskgen.format.coverage import coverage
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.mask_file import read_mask, read_metadata, write_mask
from maskgen.format.model_directory import ModelDirectoryError
from maskgen.prune import PruneSettings, prune
from maskgen.selection import SelectionError
from tests.damage import check_error, damaged, memory_limit
from tests.maskgen.masks import changed_mask, random_mask
from tests.tiny_model import make_tiny_llama


def test_damaged_mask_files(tmp_path: Path) -> None:
    general = replace(random_mask(), decoder_weights=5000)
    masks = {"general": general, "domain": replace(changed_mask(general, 0.1), seed=3)}
    whole = tmp_path / "whole"
    whole.mkdir()
    write_mask(whole / "general.safetensors", masks["general"])
    write_mask(whole / "domain.safetensors", masks["domain"], masks["general"])
    outcomes: Counter[str] = Counter()
    for seed in range(300):
        rng = random.Random(seed)
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        name = rng.choice(list(masks))
        broken = rng.choice(["general", name])  # a difference cannot be read without its parent
        path = folder / f"{broken}.safetensors"
        path.write_bytes(damaged(path, rng))
        for read in (read_mask, read_metadata):
            try:
                found = read(folder / f"{name}.safetensors")
            except MaskFileError as error:
                outcomes["refused"] += 1
                check_error(error, folder)
                continue
            outcomes["read"] += 1
            if isinstance(found, Mask):
                assert found.digest == masks[name].digest
                assert coverage(found)
    assert min(outcomes["refused"], outcomes["read"]) > 20, outcomes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model in one file, and in two with an index."""
    root = tmp_path_factory.mktemp("models")
    one = make_tiny_llama(root / "one", hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    two = root / "two"
    shutil.copytree(one, two)
    tensors = load_file(two / "model.safetensors")
    (two / "model.safetensors").unlink()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, two / file)
    (two / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return [one, two]


def break_one(models: list[Path], folder: Path, rng: random.Random) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(rng.choice(models), folder)
    weights = [path for path in sorted(folder.iterdir()) if path.name.startswith("model")]
    path = rng.choice([*weights, folder / "config.json", folder / "config.json"])
    path.write_bytes(damaged(path, rng))


def test_damaged_models_are_pruned_or_refused(models: list[Path], tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(120):
        folder = tmp_path / "damaged"
        break_one(models, folder, random.Random(seed))
        try:
            with memory_limit(2 << 30):
                prune(folder, None, PruneSettings("magnitude", dtype="fp32"))
        except (ModelDirectoryError, SelectionError) as error:
            outcomes["refused"] += 1
            check_error(error, folder)
        except ValueError as error:
            check_error(error, "NaN")
        else:
            outcomes["pruned"] += 1
    assert min(outcomes["refused"], outcomes["pruned"]) > 5, outcomes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 2**31),
        ("hidden_size", 2**20),
        ("intermediate_size", 2**40),
        ("head_dim", 2**40),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10**30),
        ("num_attention_heads", 0),
        ("hidden_act", []),
    ],
)
def test_a_config_of_another_size_takes_no_memory(
    models: list[Path], tmp_path: Path, field: str, value: object
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models[0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with memory_limit(2 << 30), pytest.raises(ModelDirectoryError) as caught:
        prune(folder, None, PruneSettings("magnitude", dtype="fp32"))
    check_error(caught.value, folder)


def test_masks_are_applied_to_damaged_models_whole_or_not(
    models: list[Path], tmp_path: Path
) -> None:
    mask = prune(models[0], None, PruneSettings("magnitude", dtype="fp32")).mask
    folder, out = tmp_path / "damaged", tmp_path / "out"
    for seed in range(150):
        break_one(models, folder, random.Random(seed))
        try:
            apply_mask(folder, mask, out)
        except (ModelDirectoryError, MaskFileError) as error:
            check_error(error, folder)
        else:
            shutil.rmtree(out)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]


def test_masks_are_regular_files(tmp_path: Path) -> None:
    """A pipe would wait for a writer for ever, a folder breaks the search for a parent."""
    general = random_mask()
    domain = changed_mask(general, 0.1)
    write_mask(tmp_path / "domain.safetensors", domain, general)
    write_mask(tmp_path / "z.safetensors", general)
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").mkdir()
    (tmp_path / "c.safetensors").symlink_to("nowhere")
    assert read_mask(tmp_path / "domain.safetensors").digest == domain.digest
    for name in "ab":
        with pytest.raises(MaskFileError, match="not a regular file"):
            read_mask(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError):
        read_mask(tmp_path / "c.safetensors")


def test_a_pipe_that_takes_the_place_of_a_mask_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    write_mask(path, random_mask())
    open_file = os.open

    def replace_and_open(name: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return open_file(name, flags)

    monkeypatch.setattr(os, "open", replace_and_open)
    with pytest.raises(MaskFileError, match="not a regular file"):
        read_mask(path)


def test_features_of_any_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_mask(path, random_mask())
    data = path.read_bytes()
    for features in ("[[]]", "[{}]", "[null]"):
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        header["__metadata__"]["required_features"] = features
        text = json.dumps(header).encode()
        path.write_bytes(
            len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]
        )
        with pytest.raises(MaskFileError, match="which this version does not know"):
            read_mask(path)
