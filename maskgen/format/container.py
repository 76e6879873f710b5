"""The safetensors container, read and written with every field checked and every byte determined.

Reading goes through the header alone, so that a caller can compare declared sizes with what it
expects before anything is allocated. Writing sorts everything: the same content gives the same
bytes with any version of any library, which the safetensors package does not promise (its
metadata comes out in hash order).

Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from maskgen.format.atomic_file import atomic_writer

_MAX_HEADER_BYTES = 100_000_000  # the safetensors package's own limit
_DTYPE_BITS = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"], 8),
    **dict.fromkeys(["F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8),
    **dict.fromkeys(["U16", "I16", "F16", "BF16"], 16),
    **dict.fromkeys(["U32", "I32", "F32"], 32),
    **dict.fromkeys(["U64", "I64", "F64", "C64"], 64),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    "F4": 4,
}
_DTYPE_NAMES = {
    **{"|u1": "U8", "<u2": "U16", "<u4": "U32", "<u8": "U64"},
    **{"|i1": "I8", "<f2": "F16", "<f4": "F32"},
}


class ContainerError(ValueError):
    """The file is not a well-formed safetensors file."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `start` and `end` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: the tensors cover the rest of the file without gap or overlap."""

    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]


def read_header(file: IO[bytes]) -> Header:
    """Read and check the header of an open safetensors file.

    Raises:
        ContainerError: anything about it is malformed, or the file is shorter or longer than the
            header says.
    """
    return parse_header(file.read, os.fstat(file.fileno()).st_size)


def parse_header(read: Callable[[int], bytes], size: int) -> Header:
    """As `read_header`, of a file of `size` bytes whose next so many `read` gives."""
    prefix = read(8)
    if len(prefix) < 8:
        raise ContainerError(f"it has {size} bytes, too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise ContainerError(
            f"its header claims {length} bytes in a file of {size}; "
            "it is truncated or not a safetensors file"
        )
    header = _parse_json(read(length))
    metadata = _check_metadata(header.pop("__metadata__", {}))
    data_start = 8 + length
    tensors = {name: _check_entry(name, value, data_start) for name, value in header.items()}
    _check_coverage(tensors, data_start, size)
    return Header(metadata, tensors)


def write_container(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Write metadata and tensors of `_DTYPE_NAMES` atomically, sorted by name."""
    entries = {
        name: (_DTYPE_NAMES[array.dtype.newbyteorder("<").str], array.shape)
        for name, array in tensors.items()
    }

    def whole(name: str) -> Iterator[memoryview]:
        array = tensors[name]
        yield np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data

    stream_container(path, metadata, entries, whole)


def stream_container(
    path: Path,
    metadata: Mapping[str, str],
    entries: Mapping[str, tuple[str, tuple[int, ...]]],
    chunks: Callable[[str], Iterable[memoryview]],
) -> None:
    """Write metadata and tensors atomically, sorted by name, that need not fit into memory.

    Args:
        path: of the file.
        metadata: strings.
        entries: name -> safetensors' name of the type, and shape.
        chunks: gives a tensor's bytes, little-endian, in order.

    Raises:
        ValueError: the bytes of a tensor are not as many as its entry says.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    # Alignment of what follows: wide types first, as the safetensors package orders them.
    order = sorted(entries, key=lambda name: (-_DTYPE_BITS[entries[name][0]], name))
    offset = 0
    for name in order:
        dtype, shape = entries[name]
        end = offset + _DTYPE_BITS[dtype] * math.prod(shape) // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_writer(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            for chunk in chunks(name):
                file.write(chunk)
            if file.tell() != 8 + len(text) + header[name]["data_offsets"][1]:
                raise ValueError(f"{path.name}: {name} has another size than was announced")


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise ContainerError(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ContainerError("its header is not a JSON object")
    return header


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ContainerError("its header holds the same name twice")
    return values


def _check_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ContainerError("its metadata is not a map of strings")
    return metadata


def _check_entry(name: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ContainerError(
            f"tensor {name!r:.200} is not described by dtype, shape and data_offsets"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise ContainerError(f"tensor {name!r:.200} has the unknown dtype {dtype!r:.40}")
    if not _is_list_of_sizes(shape) or not _is_list_of_sizes(offsets) or len(offsets) != 2:
        raise ContainerError(f"tensor {name!r:.200} has a malformed shape or position")
    bits = _DTYPE_BITS[dtype] * math.prod(shape)
    if (offsets[1] - offsets[0]) * 8 != bits:
        raise ContainerError(
            f"tensor {name!r:.200}: {dtype} of shape {shape} takes {bits} bits, "
            f"but its place has {offsets[1] - offsets[0]} bytes"
        )
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _is_list_of_sizes(value: Any) -> bool:
    # type() and not isinstance(): True is an int, and is no size.
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(type(item) is int and 0 <= item < 1 << 48 for item in value)
    )


def _check_coverage(tensors: Mapping[str, TensorEntry], data_start: int, size: int) -> None:
    end = data_start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise ContainerError(f"tensor {name!r:.200} overlaps another one or leaves a gap")
        end = entry.end
    if end != size:
        raise ContainerError(f"it has {size} bytes, but its header describes {end}; truncated?")
