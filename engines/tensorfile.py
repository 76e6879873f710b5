"""Safetensors files without a framework: memory-mapped reading, streamed and aligned writing.

The `safetensors` package reads a file into memory or hands it to a framework; an engine needs views
of the mapped file that stay mapped, and a writer that never holds more than one tensor.
"""

from __future__ import annotations

import json
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
_MAX_HEADER = 100 << 20


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of one stored tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class TensorFile:
    """A memory-mapped safetensors file; tensors are views that read pages when touched.

    Raises:
        EngineDirectoryError: the file is missing, truncated, or its header contradicts its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                start, header = _read_header(path, file.read(8), size, file)
                # Private, so that a mask can be patched into the mapped weights.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise EngineDirectoryError(f"{path} cannot be read: {error.strerror}") from error
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._entries = {
            name: _check_entry(path, name, entry, size - start) for name, entry in header.items()
        }
        self._start = start

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def spec(self, name: str) -> TensorSpec:
        """Type and shape of a tensor, without touching its data."""
        return self._find(name)[0]

    def tensor(self, name: str) -> Array:
        """A writable (copy-on-write) view of the mapped data.

        Raises:
            EngineDirectoryError: the file holds no such tensor.
        """
        spec, offset = self._find(name)
        count = int(np.prod(spec.shape, dtype=np.int64))
        flat = np.frombuffer(self._map, spec.dtype, count, self._start + offset)
        return flat.reshape(spec.shape)

    def release(self, name: str) -> None:
        """Give the resident pages of a tensor back; they are read again when touched."""
        spec, offset = self._find(name)
        page = mmap.PAGESIZE
        first = -(-(self._start + offset) // page) * page
        last = (self._start + offset + spec.nbytes) // page * page
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _find(self, name: str) -> tuple[TensorSpec, int]:
        try:
            return self._entries[name]
        except KeyError:
            raise EngineDirectoryError(f"{self.path} holds no tensor {name!r}") from None


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


def _read_header(path: Path, prefix: bytes, size: int, file: Any) -> tuple[int, dict[str, Any]]:
    if len(prefix) < 8:
        raise EngineDirectoryError(f"{path} is no safetensors file: {size} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_MAX_HEADER, size - 8):
        raise EngineDirectoryError(
            f"{path} is truncated or no safetensors file: header of {length} bytes in {size}"
        )
    try:
        header = json.loads(file.read(length))
    except ValueError as error:
        raise EngineDirectoryError(f"{path}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise EngineDirectoryError(f"{path}: the header is not an object")
    return 8 + length, header


def _check_entry(path: Path, name: str, entry: Any, data: int) -> tuple[TensorSpec, int]:
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape = tuple(int(d) for d in entry["shape"])
        begin, end = (int(v) for v in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineDirectoryError(f"{path}: bad header entry for {name!r}: {error!r}") from error
    spec = TensorSpec(dtype, shape)
    if min(shape, default=0) < 0 or end - begin != spec.nbytes:
        raise EngineDirectoryError(
            f"{path}: {name!r} spans {end - begin} bytes, its shape {shape} needs {spec.nbytes}"
        )
    if begin < 0 or end > data:
        raise EngineDirectoryError(
            f"{path} is truncated: {name!r} ends at byte {end} of {data} bytes of data"
        )
    return spec, begin
