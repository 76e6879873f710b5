"""Files that are read later are read as they were when the directory was opened, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engines.directory.files import record_files
from engines.directory.manifest import FileRecord
from engines.directory.tensor_file import TensorSpec, TensorWriter
from engines.directory.tied_file import TiedFile
from engines.errors import EngineDirectoryError

ARRAYS = {
    "a": np.arange(1000, dtype=np.float32).reshape(10, 100),
    "b": np.arange(7, dtype=np.uint8),
}


def write(path: Path, step: int = 0) -> Path:
    specs = {name: TensorSpec(array.dtype, array.shape) for name, array in ARRAYS.items()}
    with TensorWriter(path, specs, {}) as writer:
        for name, array in ARRAYS.items():
            writer.write(name, array + array.dtype.type(step))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "file")


def record(path: Path) -> FileRecord:
    return record_files(path.parent, [path.name])[path.name]


def read(tied: TiedFile, name: str = "a") -> np.ndarray:
    with tied.reading() as tensors:
        return tensors.tensor(name)


def test_tensors_are_copies(path: Path) -> None:
    tied = TiedFile(path, record(path))
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read(tied, name), array)
    found = read(tied)
    path.write_bytes(b"")
    np.testing.assert_array_equal(found, ARRAYS["a"])


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("first", [True, False], ids=["after a read", "before any"])
@pytest.mark.parametrize("known", [True, False], ids=["recorded", "version 1"])
@pytest.mark.parametrize("how", ["replaced", "rewritten", "flipped"])
def test_another_content_is_never_read(
    how: str, known: bool, first: bool, verify: bool, path: Path
) -> None:
    tied = TiedFile(path, record(path) if known else FileRecord(bytes=1), verify=verify)
    if first:
        read(tied)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if how == "replaced":
        write(path.with_name("other"), 1).replace(path)
    elif how == "rewritten":
        write(path, 1)
    else:
        path.write_bytes(content)
        # The size, the inode and the stated time of change are as they were.
    with pytest.raises(EngineDirectoryError, match="file is not, or no longer, what it was"):
        read(tied)


def test_damage_from_before_the_start_is_noticed_at_the_first_use(path: Path) -> None:
    recorded = record(path)
    write(path, 1)
    with pytest.raises(EngineDirectoryError, match="no longer, what"):
        read(TiedFile(path, recorded))
    read(TiedFile(path, recorded, verify=False))  # asked for


def test_a_change_while_it_is_read_makes_what_was_read_void(path: Path) -> None:
    tied = TiedFile(path, record(path))

    def read_twice() -> None:
        with tied.reading() as tensors:
            tensors.tensor("a")
            write(path, 1)
            tensors.tensor("b")

    with pytest.raises(EngineDirectoryError, match="no longer, what"):
        read_twice()


def test_the_same_content_again_is_the_same_file(path: Path) -> None:
    tied = TiedFile(path, record(path))
    read(tied)
    write(path.with_name("other")).replace(path)
    np.testing.assert_array_equal(read(tied), ARRAYS["a"])
    os.utime(path, (0, 0))
    tied.confirm()


def test_a_short_read_is_an_error(path: Path) -> None:
    tied = TiedFile(path, record(path))

    def truncate_and_read() -> None:
        with tied.reading() as tensors:
            os.truncate(path, 200)
            tensors.tensor("a")

    with pytest.raises(EngineDirectoryError, match="ends within 'a'"):
        truncate_and_read()


def test_a_file_that_is_not_there(path: Path) -> None:
    recorded = record(path)
    path.unlink()
    with pytest.raises(EngineDirectoryError, match="missing"):
        read(TiedFile(path, recorded))
    with pytest.raises(EngineDirectoryError, match="missing"):
        TiedFile(path, None).confirm()
