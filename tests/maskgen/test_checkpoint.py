"""Checkpoints of a learning run that are damaged, or that the disk has no room for."""

from __future__ import annotations

import json
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from maskgen.format.mask_file import read_mask
from maskgen.learning.checkpoint import CheckpointError, CheckpointFolder, RunState
from maskgen.learning.distributed import World
from maskgen.learning.progress import RunLog
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

IDENTITY = {"method": "maskllm", "steps": 9}


def logits(step: int) -> dict[str, torch.Tensor]:
    return {"layer": torch.full((2, 6, 4), float(step)), "other": torch.zeros(1, 6, 2)}


def optimiser(step: int, rank: int = 0) -> dict[str, torch.Tensor]:
    return {f"{rank}.exp_avg": torch.full((5,), step + 0.5), f"{rank}.step": torch.tensor(1.0)}


def save(root: Path, *steps: int) -> CheckpointFolder:
    folder = CheckpointFolder(root, World())
    for step in steps:
        folder.save(RunState(step, IDENTITY, {"seconds": 1.5}), logits(step), optimiser(step))
    return folder


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can grow beyond this, which writers see as they see a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    found = save(tmp_path, 2, 4, 6).load(IDENTITY)
    assert found is not None
    assert (found.state.step, found.state.statistics) == (6, {"seconds": 1.5})
    assert all(torch.equal(found.learned[name], value) for name, value in logits(6).items())
    assert all(torch.equal(found.optimiser[name], value) for name, value in optimiser(6).items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-000004", "checkpoint-000006"]
    assert CheckpointFolder(tmp_path / "empty", World()).load(IDENTITY) is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_step(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 6', '"step": 5'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.json", truncate),
        ("state.json", other_step),
        ("state.json", lambda path: path.write_text("[" * 100_000)),
        ("state.json", lambda path: path.write_text("[1]")),
        ("state.json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("state.json", Path.unlink),
        ("learned.safetensors", truncate),
        ("learned.safetensors", flip_last),
        ("learned.safetensors", lambda path: path.write_bytes(b"")),
        ("learned.safetensors", Path.unlink),
        ("optimiser-00000-of-00001.safetensors", truncate),
        ("optimiser-00000-of-00001.safetensors", flip_last),
        ("optimiser-00000-of-00001.safetensors", Path.unlink),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, name: str, damage) -> None:
    save(tmp_path, 4, 6)
    damage(tmp_path / "checkpoint-000006" / name)
    said: list[str] = []
    folder = CheckpointFolder(tmp_path, World())
    found = folder.load(IDENTITY, said.append)
    assert found is not None
    assert found.state.step == 4
    assert torch.equal(found.learned["layer"], logits(4)["layer"])
    assert len(said) == 1
    assert "checkpoint-000006 is damaged and passed over" in said[0]
    assert name in said[0]
    assert folder.latest() == tmp_path / "checkpoint-000004"
    # The damaged one makes room once a good one has taken its place, and never counts as kept.
    folder.save(RunState(5, IDENTITY), logits(5), optimiser(5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-000004", "checkpoint-000005"]


def test_checkpoints_that_are_all_damaged_are_an_error(tmp_path: Path) -> None:
    folder = save(tmp_path, 4, 6)
    for step in (4, 6):
        truncate(tmp_path / f"checkpoint-{step:06d}" / "learned.safetensors")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged .*delete them"):
        folder.load(IDENTITY)


def test_every_rank_s_shard_is_needed(tmp_path: Path) -> None:
    save(tmp_path, 4, 6)
    newest = tmp_path / "checkpoint-000006"
    (newest / "optimiser-00000-of-00001.safetensors").rename(
        newest / "optimiser-00001-of-00002.safetensors"
    )
    said: list[str] = []
    found = CheckpointFolder(tmp_path, World()).load(IDENTITY, said.append)
    assert found is not None
    assert found.state.step == 4
    assert "optimiser-00000-of-00002" in said[0]


def test_random_damage_falls_back_or_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "whole", 4, 6)
    rng = random.Random(0)
    outcomes = set()
    for _ in range(150):
        root = tmp_path / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", root)
        path = rng.choice(sorted((root / "checkpoint-000006").iterdir()))
        data = bytearray(path.read_bytes())
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randint(1, 3) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if bytes(data) == path.read_bytes():
            continue
        path.write_bytes(data)
        try:
            found = CheckpointFolder(root, World()).load(IDENTITY)
        except CheckpointError:
            outcomes.add("refused")
            continue
        assert found is not None
        step = found.state.step
        outcomes.add(step)
        assert torch.equal(found.learned["layer"], logits(step)["layer"])
        assert torch.equal(found.optimiser["0.exp_avg"], optimiser(step)["0.exp_avg"])
    assert 4 in outcomes


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    big = {"layer": torch.zeros(100_000)}
    with (
        file_size_limit(20_000),
        pytest.raises(CheckpointError, match=r"000006 could not be written .*000004.*--resume"),
    ):
        folder.save(RunState(6, IDENTITY), big, optimiser(6))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000004"]
    found = folder.load(IDENTITY)
    assert found is not None
    assert found.state.step == 4


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-000003.tmp").mkdir()
    save(tmp_path, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000004"]


def test_damaged_lines_of_the_log_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    good = json.dumps({"step": 1})
    lines = [good, '{"step": Infinity}', "[" * 50_000, "[1]", '{"step"', "\ufffd"]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe")
    RunLog(path, 3)
    assert path.read_text() == good + "\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


def learn(model: Path, folder: Path, *more: object):
    (folder / "text.txt").write_text(SAMPLE_TEXT * 4)
    fixed = ["mask", "learn", "--model", model, "--data", folder / "text.txt", "--steps", 4]
    small = ["--sequence-length", 16, "--set", "checkpoint_every=2", "--prior", "magnitude"]
    out = ["--out", folder / "m.safetensors"]
    return CliRunner().invoke(app, [str(part) for part in (*fixed, *small, *out, *more)])


def test_the_command_on_a_full_disk_and_after_it(model: Path, tmp_path: Path) -> None:
    with file_size_limit(200_000):
        stopped = learn(model, tmp_path)
    assert isinstance(stopped.exception, CheckpointError), stopped.exception
    assert "could not be written" in str(stopped.exception)
    assert "\n" not in str(stopped.exception)
    run = tmp_path / "m.run"
    assert {p.name for p in run.iterdir()} == {"log.jsonl", "prior-magnitude.safetensors"}
    assert not (tmp_path / "m.safetensors").exists()
    assert learn(model, tmp_path, "--resume").exit_code == 0
    mask = read_mask(tmp_path / "m.safetensors")

    truncate(run / "checkpoint-000004" / "optimiser-00000-of-00001.safetensors")
    again = learn(model, tmp_path, "--resume")
    assert again.exit_code == 0, again.exception
    assert "checkpoint-000004 is damaged and passed over" in again.output
    assert "resuming after step 2" in again.output
    assert read_mask(tmp_path / "m.safetensors").digest == mask.digest


def test_a_mask_that_does_not_fit_the_disk_is_named(model: Path, tmp_path: Path) -> None:
    with file_size_limit(4_000):
        stopped = learn(model, tmp_path)
    assert isinstance(stopped.exception, OSError)
    assert "prior-magnitude.safetensors" in str(stopped.exception)
    assert list((tmp_path / "m.run").iterdir()) == []
