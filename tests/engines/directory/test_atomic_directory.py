"""Directories that appear whole: nothing foreign is replaced, nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.cpu.build import build
from engines.directory import atomic_directory as module
from engines.directory.atomic_directory import atomic_directory
from engines.directory.build import BuildRequest
from engines.directory.manifest import MANIFEST_FILE
from engines.errors import EngineDirectoryError
from maskgen.format.staging import LOCK_FILE, remove_stale

STAGE = """
import os, signal, sys
from pathlib import Path
from engines.directory.atomic_directory import atomic_directory
with atomic_directory(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "big").write_bytes(bytes(1000))
    print("ready", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def engine(folder: Path, text: str = "{}") -> Path:
    folder.mkdir()
    (folder / MANIFEST_FILE).write_text(text)
    return folder


def make(out: Path, meanwhile: Callable[[], None], *, overwrite: bool = False) -> None:
    with atomic_directory(out, overwrite=overwrite) as folder:
        (folder / "mine").write_text("x")
        meanwhile()


def start_building(out: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("content", ["", "precious"])
@pytest.mark.parametrize("kind", ["folder", "file", "engine"])
def test_what_appears_while_a_directory_is_made_stays(
    kind: str, content: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def appear() -> None:
        if kind == "file":
            out.write_text(content)
            return
        out.mkdir()
        if content or kind == "engine":
            (out / (MANIFEST_FILE if kind == "engine" else "file")).write_text(content)

    with pytest.raises(EngineDirectoryError, match=f"{out} appeared while"):
        make(out, appear)
    assert names(tmp_path) == ["out"]
    assert not (out / "mine").exists()
    if kind == "file":
        assert out.read_text() == content


def test_a_build_removes_no_folder_that_appeared_meanwhile(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def appear(what: str, done: int, total: int) -> None:
        if not out.exists():
            out.mkdir()

    request = BuildRequest(tiny_model, "t", {"g": mask_of(tiny_model)}, out, progress=appear)
    with pytest.raises(EngineDirectoryError, match="appeared"):
        build(request)
    assert names(tmp_path) == ["out"]
    assert names(out) == []


def test_an_engine_directory_that_gave_way_to_something_else_is_not_replaced(
    tmp_path: Path,
) -> None:
    out = engine(tmp_path / "out")

    def give_way() -> None:
        (out / MANIFEST_FILE).unlink()
        (out / "precious").write_text("x")

    with pytest.raises(EngineDirectoryError, match="no engine directory; not replaced"):
        make(out, give_way, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(out) == ["precious"]


def test_what_an_overwrite_took_away_comes_back_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = engine(tmp_path / "out", '"old"')

    def full(out: Path, new: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_put", full)
    with pytest.raises(OSError, match="No space"), atomic_directory(out, overwrite=True):
        pass
    assert names(tmp_path) == ["out"]
    assert (out / MANIFEST_FILE).read_text() == '"old"'

    def taken(out: Path, new: Path) -> None:
        out.mkdir()
        raise EngineDirectoryError("taken")

    monkeypatch.setattr(module, "_put", taken)
    with pytest.raises(EngineDirectoryError), atomic_directory(out, overwrite=True):
        pass
    (kept,) = [path for path in tmp_path.iterdir() if path != out]
    assert (kept / MANIFEST_FILE).read_text() == '"old"'


def test_a_link_to_an_engine_directory_stays_a_link(tmp_path: Path) -> None:
    target = engine(tmp_path / "v1")
    link = tmp_path / "current"
    link.symlink_to("v1")
    with atomic_directory(link, overwrite=True) as folder:
        (folder / MANIFEST_FILE).write_text('"new"')
    assert link.is_symlink()
    assert (target / MANIFEST_FILE).read_text() == '"new"'
    assert names(tmp_path) == ["current", "v1"]


def test_what_a_killed_build_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    process = start_building(tmp_path / "out")
    alive = names(tmp_path)
    assert len(alive) == 1
    with atomic_directory(tmp_path / "other"):
        assert set(alive) < set(names(tmp_path))  # in use: it stays
    assert names(tmp_path) == [*alive, "other"]
    process.kill()
    process.communicate()
    assert names(tmp_path) == [*alive, "other"]
    with atomic_directory(tmp_path / "third"):
        pass
    assert names(tmp_path) == ["other", "third"]


def test_a_build_killed_between_its_two_renames_loses_nothing(tmp_path: Path) -> None:
    process = start_building(tmp_path / "out")
    (stage,) = tmp_path.iterdir()
    engine(stage / "old", '"before"')
    process.kill()
    process.communicate()
    remove_stale(tmp_path)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / MANIFEST_FILE).read_text() == '"before"'


def test_nothing_foreign_is_removed(tmp_path: Path) -> None:
    lookalike = tmp_path / ".out.abcd1234"
    lookalike.mkdir()
    (lookalike / "file").write_text("x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK_FILE).write_text("")
    (tmp_path / ".link.abcd1234").symlink_to(elsewhere)
    (tmp_path / ".file.abcd1234").write_text("x")
    before = names(tmp_path)
    with atomic_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == [*before, "out"]
    assert names(elsewhere) == [LOCK_FILE]
