"""Files that appear whole or not at all, also where the machine loses power meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name the file in errors that do not: writing to a full disk raises one without a name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` complete, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named_errors(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_output_file(path: Path, name: str = "--out") -> None:
    """Raise an OSError or ValueError unless a file can be put at `path`.

    For commands that work for minutes or hours before they write.

    Args:
        name: what the path is called, for the message.
    """
    if not path.name:
        raise ValueError(f"{name} names no file")
    if path.is_dir():
        raise IsADirectoryError(f"{name} {path} is a directory; name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} of {name} does not exist")
    if path.exists() and (path.parent / "config.json").is_file():
        raise FileExistsError(f"{name} {path} is a file of a model; name another")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} of {name} cannot be written to")


def write_text(path: Path, text: str) -> None:
    """Put `text` into the place of whatever `path` holds; UTF-8."""
    with atomic_writer(path) as file:
        file.write(text.encode())
