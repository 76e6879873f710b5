"""Safetensors files without a framework: memory-mapped reading, streamed and aligned writing.

The `safetensors` package reads a file into memory or hands it to a framework; an engine needs views
of the mapped file that stay mapped, and a writer that never holds more than one tensor.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engines.errors import EngineDirectoryError
from maskgen.format.container import ContainerError, Header, TensorEntry, parse_header, read_header

Array = npt.NDArray[Any]

ALIGNMENT = 64
"""Bytes; the widest vector load of the kernels."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of one stored tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorIndex:
    """What a safetensors file holds, by its header; nothing of the tensors themselves.

    Attributes:
        path: for messages.
        header: of the file.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header

    def __contains__(self, name: str) -> bool:
        return name in self.header.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor lies.

        Raises:
            EngineDirectoryError: the file holds no such tensor.
        """
        try:
            return self.header.tensors[name]
        except KeyError:
            raise EngineDirectoryError(f"{self.path} holds no tensor {name!r}") from None

    def spec(self, name: str) -> TensorSpec:
        """Type and shape of a tensor.

        Raises:
            EngineDirectoryError: as `entry`; or numpy has no such type.
        """
        entry = self.entry(name)
        if entry.dtype not in _DTYPES:
            raise EngineDirectoryError(
                f"{self.path}: {name!r} is {entry.dtype}; known are {', '.join(_DTYPES)}"
            )
        return TensorSpec(_DTYPES[entry.dtype], entry.shape)

    def view(self, name: str, contents: Any, offset: int = 0) -> Array:
        """A tensor in a buffer that holds the file from byte `offset` on."""
        spec, start = self.spec(name), self.entry(name).start - offset
        flat = np.frombuffer(contents, spec.dtype, math.prod(spec.shape), start)
        return flat.reshape(spec.shape)


def read_index(path: Path) -> TensorIndex:
    """The index of a safetensors file.

    Raises:
        EngineDirectoryError: the file is missing, truncated, or its header contradicts its size.
    """
    with open_file(path) as file:
        return TensorIndex(path, header_of(path, file))


class TensorFile(TensorIndex):
    """A memory-mapped safetensors file; tensors are views that read pages when touched.

    A file that is truncated while it is mapped kills the process that touches it (SIGBUS), so only
    files that nobody changes meanwhile should be.

    Raises:
        EngineDirectoryError: see `read_index`.
    """

    def __init__(self, path: Path) -> None:
        with open_file(path) as file:
            super().__init__(path, header_of(path, file))
            # Private, so that a mask can be patched into the mapped weights.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, name: str) -> Array:
        """A writable (copy-on-write) view of the mapped data.

        Raises:
            EngineDirectoryError: see `TensorIndex.spec`.
        """
        return self.view(name, self._map)

    def release(self, name: str) -> None:
        """Give the resident pages of a tensor back; they are read again when touched."""
        entry, page = self.entry(name), mmap.PAGESIZE
        first = -(-entry.start // page) * page
        last = entry.end // page * page
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[io.FileIO]:
    """Open a regular file for reading, unbuffered.

    Raises:
        EngineDirectoryError: there is none, or it cannot be read.
    """
    try:
        if not path.is_file():  # a FIFO would wait for ever
            raise EngineDirectoryError(f"{path} is missing, or no regular file")
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise EngineDirectoryError(f"{path} cannot be read: {error.strerror}") from error


def header_of(path: Path, file: io.FileIO) -> Header:
    """The header of an open safetensors file.

    Raises:
        EngineDirectoryError: it is malformed.
    """
    with _as_engine_directory_error(path):
        return read_header(file)


def header_in(path: Path, contents: npt.NDArray[np.uint8]) -> Header:
    """The header of a safetensors file that lies in memory.

    Raises:
        EngineDirectoryError: it is malformed.
    """
    length = int.from_bytes(contents[:8].tobytes(), "little")
    start = io.BytesIO(contents[: 8 + min(length, contents.size)].tobytes())
    with _as_engine_directory_error(path):
        return parse_header(start.read, contents.size)


@contextlib.contextmanager
def _as_engine_directory_error(path: Path) -> Iterator[None]:
    try:
        yield
    except ContainerError as error:
        raise EngineDirectoryError(f"{path} is not a safetensors file: {error}") from None


class TensorWriter:
    """Writes a safetensors file tensor by tensor, in any order, from any thread.

    Tensors whose size is a multiple of 64 bytes come first and start on 64-byte boundaries. Use as
    a context manager; leaving it without having written every tensor is an error.
    """

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        self.path = path
        ordered = sorted(specs.items(), key=lambda item: item[1].nbytes % ALIGNMENT != 0)
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset = 0
        self._places: dict[str, tuple[TensorSpec, int]] = {}
        for name, spec in ordered:
            end = offset + spec.nbytes
            header[name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, end],
            }
            self._places[name] = (spec, offset)
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        self._start = len(text) + 8
        self._missing = set(self._places)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._file.truncate(self._start + offset)

    def write(self, name: str, tensor: Array) -> None:
        """Store one tensor.

        Raises:
            ValueError: the tensor was not announced, or with another type or shape.
        """
        spec, offset = self._places[name]
        if tensor.dtype != spec.dtype or tensor.shape != spec.shape:
            raise ValueError(
                f"{name} is {tensor.dtype} {tensor.shape}, announced {spec.dtype} {spec.shape}"
            )
        data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        self._file.seek(self._start + offset)
        self._file.write(data.data)
        self._missing.discard(name)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"{self.path} lacks {len(self._missing)} announced tensors")
