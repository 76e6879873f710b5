"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskgen.format.atomic_file import atomic_writer, named_errors, write_text


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def fail() -> None:
        with atomic_writer(path) as file:
            file.write(b"half")
            assert path.read_text() == "before"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before"
    write_text(path, "äfter")
    assert path.read_text("utf-8") == "äfter"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        write_text(tmp_path / "missing" / "file", "")
    with (
        pytest.raises(OSError, match="No space left on device: 'full'"),
        named_errors(Path("full")),
    ):
        raise OSError(28, "No space left on device")
