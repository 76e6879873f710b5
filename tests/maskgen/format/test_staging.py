"""New folders: nothing is replaced, nothing is left behind for longer than until the next one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maskgen.format.staging import LOCK_FILE, new_directory, remove_stale, staging

STAGE = """
import sys
from pathlib import Path
from maskgen.format.staging import new_directory
with new_directory(Path(sys.argv[1])) as folder:
    (folder / "big").write_bytes(bytes(1000))
    print("ready", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_directory_is_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "parent" / "out"
    with new_directory(out) as folder:
        (folder / "file").write_text("x")
        assert not out.exists()
    assert names(out) == ["file"]
    with pytest.raises(FileExistsError, match="out exists already"), new_directory(out):
        pass
    with pytest.raises(RuntimeError), new_directory(tmp_path / "parent" / "other"):
        raise RuntimeError
    assert names(out.parent) == ["out"]


def test_what_appeared_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileExistsError, match="appeared while"), new_directory(out):
        out.mkdir()
    assert names(tmp_path) == ["out"]
    assert names(out) == []


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    (left,) = names(tmp_path)
    process.kill()
    process.communicate()
    assert names(tmp_path) == [left]
    with new_directory(tmp_path / "other"):
        pass
    assert names(tmp_path) == ["other"]


def test_a_staging_folder_of_this_process_is_in_use(tmp_path: Path) -> None:
    with staging(tmp_path, "out") as folder:
        remove_stale(tmp_path)
        assert names(tmp_path) == [folder.name]
        assert LOCK_FILE in names(folder)
    assert names(tmp_path) == []
