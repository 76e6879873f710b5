"""Files are recorded when a directory is built and verified when it is opened."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from engines.directory.files import CHUNK_BYTES, list_files, record_files, verify_files
from engines.errors import EngineDirectoryError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "masks").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "big").write_bytes(os.urandom(2 * CHUNK_BYTES + 7))
    (tmp_path / "masks" / "a.safetensors").write_bytes(b"abc")
    return tmp_path


def test_records_are_size_and_sha256(directory: Path) -> None:
    records = record_files(directory, list_files(directory))
    assert list(records) == ["big", "empty", "masks/a.safetensors"]
    for name, record in records.items():
        content = (directory / name).read_bytes()
        assert record.bytes == len(content)
        assert record.sha256 == hashlib.sha256(content).hexdigest()


def test_hidden_files_and_the_manifest_are_not_listed(directory: Path) -> None:
    before = list_files(directory)
    (directory / ".adding.abcd1234").mkdir()
    (directory / ".adding.abcd1234" / "half").write_text("x")
    (directory / ".hidden").write_text("x")
    (directory / "engine.json").write_text("{}")
    assert list_files(directory) == before


def test_progress_counts_every_byte(directory: Path) -> None:
    records = record_files(directory, list_files(directory))
    told: list[tuple[str, int, int]] = []
    verify_files(directory, records, lambda *step: told.append(step))
    total = sum(record.bytes for record in records.values())
    assert told[-1] == ("verifying", total, total)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize("place", [0, CHUNK_BYTES, -1])
def test_one_changed_bit_is_noticed(directory: Path, place: int) -> None:
    records = record_files(directory, list_files(directory))
    verify_files(directory, records)
    content = bytearray((directory / "big").read_bytes())
    content[place] ^= 1
    (directory / "big").write_bytes(content)
    with pytest.raises(EngineDirectoryError, match="big is not the file that was built"):
        verify_files(directory, records)


def test_other_sizes_and_missing_files(directory: Path) -> None:
    records = record_files(directory, list_files(directory))
    (directory / "masks" / "a.safetensors").write_bytes(b"abcd")
    with pytest.raises(EngineDirectoryError, match=r"has 4 bytes, engine\.json says 3"):
        verify_files(directory, records)
    (directory / "masks" / "a.safetensors").unlink()
    with pytest.raises(EngineDirectoryError, match=r"a\.safetensors cannot be read: No such file"):
        verify_files(directory, records)


def test_what_is_no_regular_file_is_not_waited_for(directory: Path) -> None:
    records = record_files(directory, list_files(directory))
    (directory / "empty").unlink()
    os.mkfifo(directory / "empty")
    with pytest.raises(EngineDirectoryError, match="no regular file"):
        verify_files(directory, records)
