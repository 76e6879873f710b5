"""The files of an engine directory: recorded when it is built, verified when it is opened."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.directory.manifest import MANIFEST_FILE, FileRecord
from engines.directory.progress import BuildProgress, silent
from engines.directory.tensor_file import open_file
from engines.errors import EngineDirectoryError

CHUNK_BYTES = 1 << 20
"""How much is read and hashed at a time; hashing it lets other threads run."""

_THREADS = 8


def list_files(directory: Path) -> list[str]:
    """Relative names of the files below `directory`, hidden ones and `engine.json` left out."""
    paths = (path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file())
    names = [path.as_posix() for path in paths if not any(p.startswith(".") for p in path.parts)]
    return [name for name in names if name != MANIFEST_FILE]


def record_files(
    directory: Path, names: Collection[str], progress: BuildProgress = silent
) -> dict[str, FileRecord]:
    """Size and SHA-256 of the named files: the manifest's `files`."""
    found = _measure(directory, names, lambda name, record: None, "recording", progress)
    return {name: found[name] for name in names}


def verify_files(
    directory: Path, records: Mapping[str, FileRecord], progress: BuildProgress = silent
) -> None:
    """Read every named file and compare it with its record; several at a time.

    Args:
        records: those without a SHA-256 are compared by size.

    Raises:
        EngineDirectoryError: a file is missing, unreadable, or not what was recorded.
    """

    def check(name: str, found: FileRecord) -> None:
        check_record(directory / name, records[name], found)

    _measure(directory, records, check, "verifying", progress)


def check_record(path: Path, expected: FileRecord, found: FileRecord) -> None:
    """Raise EngineDirectoryError unless a file is the one that was recorded."""
    if found.bytes != expected.bytes:
        raise EngineDirectoryError(
            f"{path} has {found.bytes} bytes, {MANIFEST_FILE} says {expected.bytes}: truncated or"
            " changed; build the directory again"
        )
    if expected.sha256 is not None and found.sha256 != expected.sha256:
        raise EngineDirectoryError(
            f"{path} is not the file that was built: its SHA-256 is {found.sha256}, {MANIFEST_FILE}"
            f" says {expected.sha256}; build the directory again"
        )


def _measure(
    directory: Path,
    names: Collection[str],
    check: Callable[[str, FileRecord], None],
    what: str,
    progress: BuildProgress,
) -> dict[str, FileRecord]:
    """Records of the files as they are, `check`ed one by one; stops at the first error."""
    try:
        total = sum((directory / name).stat().st_size for name in names)
    except OSError as error:
        raise EngineDirectoryError(f"{error.filename} cannot be read: {error.strerror}") from error
    lock, stop = threading.Lock(), threading.Event()
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        with lock:
            done += size
            progress(what, done, total)

    def one(name: str) -> FileRecord:
        try:
            path = directory / name
            with open_file(path) as file:
                found = record_of(path, file, advance, stop)
            if not stop.is_set():
                check(name, found)
        except BaseException:
            stop.set()
            raise
        return found

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def record_of(
    path: Path,
    file: io.FileIO,
    advance: Callable[[int], None] = lambda size: None,
    stop: threading.Event | None = None,
) -> FileRecord:
    """Size and SHA-256 of an open file, read by position.

    Args:
        path: for messages.
        file: its own position stays.
        advance: told the size of every piece.
        stop: ends it early, with a record of what was read so far.

    Raises:
        EngineDirectoryError: it cannot be read.
    """
    sha, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(CHUNK_BYTES))
    try:
        while (stop is None or not stop.is_set()) and (
            count := os.preadv(file.fileno(), [buffer], size)
        ):
            sha.update(buffer[:count])
            size += count
            advance(count)
    except OSError as error:
        raise EngineDirectoryError(f"{path} cannot be read: {error.strerror}") from error
    return FileRecord(bytes=size, sha256=sha.hexdigest())
