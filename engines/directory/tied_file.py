"""A tensor file that is read later than the directory was opened, and only as it was then."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engines.directory.files import record_of
from engines.directory.manifest import FileRecord
from engines.directory.tensor_file import Array, TensorIndex, header_of, open_file
from engines.errors import EngineDirectoryError

_Stamp = tuple[int, ...]


class TiedFile:
    """A safetensors file of an engine directory, read by position, in copies.

    It may be read long after the directory was opened, which may have been rebuilt in its place
    since then. Content that is not the open directory's is never returned.

    Args:
        path: the file.
        record: what it must be; None where the manifest does not say, and then it must not be
            touched as long as this object is in use.
        verify: compare its content with the record when it is first read, and not only when it was
            touched since it was opened.
    """

    def __init__(self, path: Path, record: FileRecord | None, *, verify: bool = True) -> None:
        self._path = path
        self._record = record
        self._trusted = None if verify and _has_digest(record) else _stamp_of(path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[TensorReader]:
        """The file, open. What was read counts only once the block ends without an error.

        Raises:
            EngineDirectoryError: the file is missing, malformed, shorter than it says, or not (or
                no longer) the open directory's.
        """
        with open_file(self._path) as file:
            stamp = self._confirm(file)
            yield TensorReader(self._path, file)
            if _stamp(file.fileno()) != stamp:
                raise self._foreign()

    def confirm(self) -> None:
        """Check the file for a reader of its own.

        Raises:
            EngineDirectoryError: it is missing, or not the open directory's.
        """
        with open_file(self._path) as file:
            self._confirm(file)

    def _confirm(self, file: io.FileIO) -> _Stamp:
        stamp = _stamp(file.fileno())
        if stamp != self._trusted:
            if not _has_digest(self._record) or record_of(self._path, file) != self._record:
                raise self._foreign()
            self._trusted = stamp
        return stamp

    def _foreign(self) -> EngineDirectoryError:
        return EngineDirectoryError(
            f"{self._path} is not, or no longer, what it was when the engine opened this directory:"
            " it was rebuilt or damaged; start the engine again, or build the directory again"
        )


class TensorReader(TensorIndex):
    """Reads tensors of an open safetensors file by position, each into memory of its own."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        super().__init__(path, header_of(path, file))
        self._file = file

    def tensor(self, name: str) -> Array:
        """A copy of the tensor.

        Raises:
            EngineDirectoryError: the file ends before the tensor does, or see `TensorIndex.spec`.
        """
        entry = self.entry(name)
        contents = np.empty(entry.end - entry.start, np.uint8)
        view, done = memoryview(contents.data), 0
        while done < contents.size:
            try:
                count = os.preadv(self._file.fileno(), [view[done:]], entry.start + done)
            except OSError as error:
                raise EngineDirectoryError(
                    f"{self.path} cannot be read: {error.strerror}"
                ) from error
            if not count:
                raise EngineDirectoryError(
                    f"{self.path} ends within {name!r}: it was truncated while it was in use"
                )
            done += count
        return self.view(name, contents, entry.start)


def _has_digest(record: FileRecord | None) -> bool:
    return record is not None and record.sha256 is not None


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        with open_file(path) as file:
            return _stamp(file.fileno())
    except EngineDirectoryError:
        return None


def _stamp(descriptor: int) -> _Stamp:
    """Changes whenever the file is written to, or another one takes its place."""
    status = os.fstat(descriptor)
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
