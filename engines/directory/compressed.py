"""The sparse formats of compressed-tensors (llm-compressor), read as if they were dense.

For a weight of `rows` x `cols` both store `shape` (int64, as [rows, cols] or one below the other),
and `bitmask`, uint8 (rows, ceil(cols / 8)): bit 0 of a row's first byte is its column 0.

    sparse-24-bitmask   `compressed` (rows, cols / 2): the two values that each group keeps
    sparse-bitmask      `compressed` (kept,): all values that are not zero, row by row;
                        `row_offsets` int64 (rows,): where each row begins

The first has 2:4 weights by definition. The second, the default of llm-compressor until August
2024, takes any tensor, norms and biases of one dimension too. The tensors' names are that of the
weight with or without its `.weight`, by version.

Source: compressed_tensors/compressors/sparse_bitmask.py of 0.5.0,
compressors/sparse_compressors/sparse_{24_,}bitmask.py of 0.9.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.directory.checkpoint import Checkpoint
from engines.directory.tensor_file import TensorSpec
from engines.errors import EngineDirectoryError
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import Codes, codes_from_keep
from maskgen.format.two_four import GROUP

SPARSE_24, SPARSE_ANY, DENSE = "sparse-24-bitmask", "sparse-bitmask", "dense"

_BITMASK, _COMPRESSED, _SHAPE, _OFFSETS = ".bitmask", ".compressed", ".shape", ".row_offsets"
_BACKBONE = "model."
_TOP_LEVEL = re.compile(r"(layers\.[0-9]+|embed_tokens|norm)\..+")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a tensor comes from: the name it is stored under, or the prefix of its parts."""

    name: str
    kind: str


class DenseView:
    """The tensors of a checkpoint in either format, or in none, under the names of a dense one.

    Weights that were saved without the head's class (`AutoModel`) lack the prefix `model.`; they
    get it back.

    Attributes:
        checkpoint: what is viewed.
        kind: `sparse-24-bitmask`, `sparse-bitmask` or `dense`.
        prefixed: whether names were given back their `model.`.

    Raises:
        EngineDirectoryError: parts of a weight are missing.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        found = _sources(checkpoint)
        self.kind = next((s.kind for s in found.values() if s.kind != DENSE), DENSE)
        self.prefixed = "embed_tokens.weight" in found and not any(
            name.startswith(_BACKBONE) for name in found
        )
        self._sources = {
            f"{_BACKBONE}{name}" if self.prefixed and _TOP_LEVEL.fullmatch(name) else name: source
            for name, source in found.items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def spec(self, name: str) -> TensorSpec:
        """Type and shape of a dense tensor.

        Raises:
            EngineDirectoryError: the parts of a compressed one do not fit its shape.
        """
        source = self._sources[name]
        if source.kind == DENSE:
            return self.checkpoint.spec(source.name)
        values = self.checkpoint.tensor(source.name + _COMPRESSED)
        return TensorSpec(values.dtype, self._shape(source))

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A dense tensor, in the type it is stored in.

        Raises:
            EngineDirectoryError: the parts of a compressed one do not belong together.
        """
        source = self._sources[name]
        if source.kind == DENSE:
            return self.checkpoint.raw(source.name)
        keep = self._keep(source)
        values = self.checkpoint.tensor(source.name + _COMPRESSED).reshape(-1)
        if (kept := np.count_nonzero(keep)) != values.size:
            raise EngineDirectoryError(
                f"{self._where(source)}{_COMPRESSED} has {values.size} values, its bitmask"
                f" keeps {kept}"
            )
        dense = np.zeros(keep.shape, values.dtype)
        dense[keep] = values  # both in row-major order
        return dense

    def codes(self, name: str) -> Codes | None:
        """The codes that a 2:4 format states; None for tensors in other formats.

        Raises:
            EngineDirectoryError: the bitmask is not 2:4.
        """
        source = self._sources[name]
        if source.kind != SPARSE_24:
            return None
        try:
            return codes_from_keep(self._keep(source), TWO_FOUR)
        except ValueError as error:
            raise EngineDirectoryError(f"{self._where(source)}{_BITMASK}: {error}") from error

    def release(self, name: str) -> None:
        """Give a tensor's resident pages back once it has been used."""
        source = self._sources[name]
        self.checkpoint.release(source.name + (_COMPRESSED if source.kind != DENSE else ""))

    def _where(self, source: _Source) -> str:
        return f"{self.checkpoint.directory}: {source.name}"

    def _shape(self, source: _Source) -> tuple[int, ...]:
        checkpoint, prefix = self.checkpoint, source.name
        stored = checkpoint.raw(prefix + _SHAPE)
        shape = tuple(int(size) for size in stored.reshape(-1)) if stored.dtype.kind == "i" else ()
        if not shape or min(shape) < 1 or (source.kind == SPARSE_24 and not _fits_24(shape)):
            wanted = f"rows x a multiple of {GROUP}" if source.kind == SPARSE_24 else "whole sizes"
            raise EngineDirectoryError(
                f"{self._where(source)} has shape {shape}; {source.kind} needs {wanted}"
            )
        expected = {_BITMASK: (*shape[:-1], -(-shape[-1] // 8))}
        if source.kind == SPARSE_24:
            expected[_COMPRESSED] = (shape[0], shape[1] // 2)
        for suffix, size in expected.items():
            got = checkpoint.spec(prefix + suffix).shape
            if got != size:
                raise EngineDirectoryError(
                    f"{self._where(source)}{suffix} is {got}; a weight of {shape} needs {size}"
                )
        return shape

    def _keep(self, source: _Source) -> npt.NDArray[np.bool_]:
        shape = self._shape(source)
        bits = self.checkpoint.raw(source.name + _BITMASK)
        if bits.dtype != np.uint8:
            raise EngineDirectoryError(
                f"{self._where(source)}{_BITMASK} is {bits.dtype}, expected uint8"
            )
        keep = np.unpackbits(bits, axis=-1, bitorder="little").view(np.bool_)
        if keep[..., shape[-1] :].any():
            raise EngineDirectoryError(
                f"{self._where(source)}{_BITMASK} has bits beyond input {shape[-1]}"
            )
        keep = keep[..., : shape[-1]]
        if source.kind == SPARSE_ANY and len(shape) == 2:
            self._check_offsets(source, keep)
        return keep

    def _check_offsets(self, source: _Source, keep: npt.NDArray[np.bool_]) -> None:
        counts = np.count_nonzero(keep, axis=-1)
        stored = self.checkpoint.raw(source.name + _OFFSETS)
        if not np.array_equal(stored, np.cumsum(counts) - counts):
            raise EngineDirectoryError(
                f"{self._where(source)}{_OFFSETS} does not agree with the bitmask;"
                " the file is damaged"
            )


def _fits_24(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[1] % GROUP == 0


def _sources(checkpoint: Checkpoint) -> dict[str, _Source]:
    compressed = {
        name.removesuffix(_BITMASK): SPARSE_24 for name in checkpoint if name.endswith(_BITMASK)
    }
    parts: set[str] = set()
    for prefix in compressed:
        if prefix + _OFFSETS in checkpoint:
            compressed[prefix] = SPARSE_ANY
            parts.add(prefix + _OFFSETS)
        for suffix in (_BITMASK, _COMPRESSED, _SHAPE):
            if prefix + suffix not in checkpoint:
                raise EngineDirectoryError(
                    f"{checkpoint.directory}: {prefix}{_BITMASK} without {prefix}{suffix}"
                )
            parts.add(prefix + suffix)
    found = {name: _Source(name, DENSE) for name in checkpoint if name not in parts}
    if stray := [name for name in found if name.endswith((_COMPRESSED, _OFFSETS))]:
        raise EngineDirectoryError(f"{checkpoint.directory}: {stray[0]} without its {_BITMASK}")
    for prefix, kind in compressed.items():
        name = prefix if prefix.endswith((".weight", ".bias")) else f"{prefix}.weight"
        if name in found:
            raise EngineDirectoryError(f"{checkpoint.directory} holds {name} twice")
        found[name] = _Source(prefix, kind)
    return found
