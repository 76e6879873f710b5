"""What a GGUF file says it holds: its metadata, and where each tensor lies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The package
`gguf` has a reader, too. It makes numpy objects of every element of every list, 13 s and 700 MB for
a vocabulary of 262,144 tokens, and meets damaged files with errors of numpy; its types and its
dequantiser are used here.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

MAGIC = b"GGUF"

_VERSIONS = (2, 3)
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_MOST_ELEMENTS = 1 << 48


class GgufError(ValueError):
    """A GGUF file is damaged, or holds what cannot be made a model directory of."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies.

    Attributes:
        name: in the file.
        type: how its values are stored.
        shape: outputs first, as in a model directory; the file has it the other way round.
        start: its first byte in the file.
        nbytes: how many it takes.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A checked header.

    Attributes:
        path: the file.
        metadata: by key; lists of numbers are tuples.
        tensors: by name.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        GgufError: it is no GGUF file, damaged, truncated, one part of several, or holds a tensor of
            a type that cannot be dequantised.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _parse(path, data)
    except (OSError, ValueError) as error:
        if isinstance(error, GgufError):
            raise
        raise GgufError(f"{path} cannot be read: {error}") from error
    for kind in {tensor.type for tensor in header.tensors.values()}:
        _require_dequantiser(header, kind)
    return header


class _Cursor:
    """Reads values one after the other, and never beyond the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self.offset = path, data, 0

    def take(self, count: int) -> bytes:
        end = self.offset + count
        if end > len(self._data):
            raise GgufError(
                f"{self._path} is truncated: its header ends after {len(self._data)} bytes"
            )
        taken, self.offset = self._data[self.offset : end], end
        return taken

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def text(self) -> str:
        raw = self.take(self.scalar("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise GgufError(f"{self._path} holds a text that is not UTF-8: {raw[:40]!r}") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            value = self.scalar(_SCALARS[kind])
            return _shortest(value) if kind == 6 else value
        if kind != _ARRAY:
            raise GgufError(f"{self._path}: {key} has the unknown type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner == _STRING:
            return tuple(self._texts(count))
        if inner not in _SCALARS:
            raise GgufError(f"{self._path}: {key} is a list of the unknown type {inner}")
        dtype = np.dtype(_SCALARS[inner]).newbyteorder("<")
        return tuple(np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist())

    def _texts(self, count: int) -> list[str]:
        if count > len(self._data):  # every text takes bytes
            raise GgufError(f"{self._path} is damaged: a list of {count} texts")
        return [self.text() for _ in range(count)]


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(path, data)
    if data[:4] != MAGIC:
        raise GgufError(f"{path} is not a GGUF file")
    cursor.take(4)
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        raise GgufError(f"{path} has GGUF version {version}, expected 2 or 3 (little-endian)")
    tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("I"), key)
    if (parts := metadata.get("split.count", 1)) != 1:
        raise GgufError(
            f"{path} is one part of {parts}: join them first (llama-gguf-split --merge)"
        )
    places = [_place(cursor, path) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise GgufError(f"{path}: general.alignment is {alignment!r}, expected a number from 1")
    start = -(-cursor.offset // alignment) * alignment
    return GgufHeader(path, metadata, _tensors(path, places, start, len(data)))


def _place(cursor: _Cursor, path: Path) -> GgufTensor:
    name, dimensions = cursor.text(), cursor.scalar("I")
    if dimensions > _MOST_DIMENSIONS:
        raise GgufError(f"{path}: {name!r:.80} has {dimensions} dimensions, the format allows 4")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    code, offset = cursor.scalar("I"), cursor.scalar("Q")
    try:
        kind = GGMLQuantizationType(code)
    except ValueError:
        raise GgufError(
            f"{path}: {name!r:.80} has the type {code}, which gguf does not know; a newer release"
            " of the package may"
        ) from None
    size, nbytes = GGML_QUANT_SIZES[kind]
    elements = math.prod(shape)
    if not 0 < elements < _MOST_ELEMENTS or not shape or shape[-1] % size:
        raise GgufError(
            f"{path}: {name!r:.80} of type {kind.name} has shape {list(shape)}, expected rows of a"
            f" multiple of {size} values"
        )
    return GgufTensor(name, kind, shape, offset, elements // size * nbytes)


def _tensors(path: Path, places: list[GgufTensor], start: int, size: int) -> dict[str, GgufTensor]:
    found: dict[str, GgufTensor] = {}
    for place in places:
        if place.name in found:
            raise GgufError(f"{path} holds the tensor {place.name!r:.80} twice")
        end = start + place.start + place.nbytes
        if end > size:
            raise GgufError(
                f"{path} is truncated: {place.name!r:.80} ends at byte {end:,}, the file has"
                f" {size:,}"
            )
        found[place.name] = GgufTensor(
            place.name, place.type, place.shape, start + place.start, place.nbytes
        )
    return found


def _require_dequantiser(header: GgufHeader, kind: GGMLQuantizationType) -> None:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        name = next(name for name, item in header.tensors.items() if item.type == kind)
        raise GgufError(
            f"{header.path}: {name} has the type {kind.name}, which gguf cannot dequantise"
        ) from None


def _shortest(value: float) -> float:
    """The decimal number that was stored in float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
