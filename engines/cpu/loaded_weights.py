"""The file of packed weights, read into memory of its own."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.directory.files import CHUNK_BYTES, check_record
from engines.directory.manifest import FileRecord
from engines.directory.progress import BuildProgress, silent
from engines.directory.tensor_file import TensorIndex, header_in, open_file
from engines.errors import EngineDirectoryError
from engines.native.layout import empty


class LoadedTensors(TensorIndex):
    """A safetensors file in memory: nothing that is done to the file later reaches it.

    In huge pages where there are any, each of which saves the TLB misses of 512 small ones.

    Args:
        path: the file.
        record: what it must be, checked on the bytes that are used; None checks nothing.
        progress: told how much has been read.

    Raises:
        EngineDirectoryError: the file is missing, malformed, or another one than recorded.
    """

    def __init__(
        self, path: Path, record: FileRecord | None = None, progress: BuildProgress = silent
    ) -> None:
        with open_file(path) as file:
            self._contents = _read(path, file, record, progress)
        super().__init__(path, header_in(path, self._contents))

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A writable view of the tensor in memory.

        Raises:
            EngineDirectoryError: see `TensorIndex.spec`.
        """
        return self.view(name, self._contents)


def _read(
    path: Path, file: io.FileIO, record: FileRecord | None, progress: BuildProgress
) -> npt.NDArray[np.uint8]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    contents = empty(size)
    view, done, sha = memoryview(contents.data), 0, hashlib.sha256()
    while done < size:
        count = file.readinto(view[done : done + CHUNK_BYTES])
        if not count:
            raise EngineDirectoryError(f"{path} became shorter while it was read")
        if record is not None and record.sha256 is not None:
            sha.update(view[done : done + count])
        done += count
        progress("reading weights", done, size)
    if record is not None:
        check_record(path, record, FileRecord(bytes=size, sha256=sha.hexdigest()))
    return contents
