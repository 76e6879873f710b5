"""Weights of int8 and int4 values: packing them for the native kernels, and back.

    w[row, input] = scale[row, block] * value[row, input]        where kept; 0 elsewhere

A *value* is an int8, -127 to 127. Layouts of int8 store it. Layouts of int4 store a *level*, 0 to
15, and `value = 8 level + minimum`: a step is 8 scales, and the minimum, an int8 of its own for
every block or -64 for all (the symmetric grid: levels 0 to 15 are -8 to 7 steps), counts eighths of
a step. A *block* is 32, 64 or 128 consecutive inputs of one row; a row's last may be shorter.

docs/formats.md describes the bytes, `engines/csrc/kernels/lowbit/layout.h` defines them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.native import _native
from engines.native.layout import Layout, LayoutError, PackedWeights, empty, packed_bytes

VERSION = _native.LOWBIT_LAYOUT_VERSION
"""Version of all int8 and int4 layouts."""

BLOCKS = (32, 64, 128)
"""Inputs that may share a scale."""

STEP = 8
"""Values between two int4 levels."""

SYMMETRIC_MINIMUM = -64
"""The minimum of blocks without one of their own: level 8 is 0."""

MINIMA = (-127, 7)
"""Least and greatest minimum: every level's value is -127 to 127."""

_TILE = 32
_FAULTS = {
    1: "places that are no placement of {kept}",
    2: "a value that is none",
    3: "a scale that is negative or not finite",
    4: f"a minimum that is not {MINIMA[0]} to {MINIMA[1]}",
    5: "something other than padding beyond the last row or input",
}


@dataclass(frozen=True, eq=False)
class QuantisedWeights:
    """One linear layer's weights before packing.

    Attributes:
        values: (n, k) int8: values, -127 to 127, or for int4 levels, 0 to 15. What is not kept is
            ignored by packing, and 0 after unpacking.
        scales: (n, blocks) float16, finite and not negative.
        minima: (n, blocks) int8, -127 to 7; None for int8 and for the symmetric grid.
        kept: (n, ceil(k / 32)) uint32, bit i of a word is input i of its 32; None for dense ones.
        block: inputs that share a scale.
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]
    block: int
    minima: npt.NDArray[np.int8] | None = None
    kept: npt.NDArray[np.uint32] | None = None


def is_int4(layout: Layout) -> bool:
    """Whether the layout's values are levels of 4 bits."""
    return layout in (Layout.DENSE_INT4, Layout.SPARSE24_INT4, Layout.BITMAP32_INT4)


def is_sparse(layout: Layout) -> bool:
    """Whether rows keep half of their inputs."""
    return layout not in (Layout.DENSE_INT8, Layout.DENSE_INT4)


def block_count(k: int, block: int) -> int:
    """Blocks of a row of k inputs."""
    return -(-k // block)


def kept_words(keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """(n, k) booleans, True for kept, as the words of `QuantisedWeights.kept`."""
    n, k = keep.shape
    padded = np.zeros((n, -(-k // _TILE) * _TILE), np.bool_)
    padded[:, :k] = keep
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32, copy=False)


def keep_of_words(kept: npt.NDArray[np.uint32], k: int) -> npt.NDArray[np.bool_]:
    """The inverse of `kept_words`, for k inputs."""
    bits = np.unpackbits(kept.astype("<u4").view(np.uint8), axis=1, bitorder="little")
    return bits[:, :k].astype(np.bool_)


def pack(layout: Layout, weights: QuantisedWeights, *, threads: int = 0) -> PackedWeights:
    """Packs a layer.

    2:4 layouts take two kept inputs of every group of four, bitmap layouts 16 of every 32 (so
    16:32, 8:16, 4:8 and 2:4), and half of what a row has beyond its last 32. Equal weights give
    equal bytes.

    Args:
        layout: of int8 or int4.
        weights: what to pack.
        threads: 0 uses OpenMP's own number.

    Raises:
        LayoutError: arrays of other types or shapes than the layout's, or a value, scale, minimum
            or placement that is none.
    """
    w = weights
    if layout not in _LOWBIT:
        raise LayoutError(f"{layout.name} has no int8 or int4 values; use engines.native.layout")
    if w.values.ndim != 2 or w.values.dtype != np.int8:
        raise LayoutError(f"values are an int8 matrix, not {w.values.dtype} of {w.values.shape}")
    n, k = w.values.shape
    packed = empty(packed_bytes(layout, n, k, w.block, w.minima is not None))
    blocks = (n, block_count(k, w.block))
    _require("scales", w.scales, np.float16, blocks)
    if w.minima is not None:
        _require("minima", w.minima, np.int8, blocks)
    if (w.kept is not None) != is_sparse(layout):
        raise LayoutError(f"{layout.name} {'needs' if w.kept is None else 'takes no'} kept words")
    if w.kept is not None:
        _require("kept words", w.kept, np.uint32, (n, -(-k // _TILE)))
    found = _native.lowbit_pack(
        int(layout),
        w.block,
        np.ascontiguousarray(w.values),
        np.ascontiguousarray(w.scales).view(np.uint16),
        None if w.minima is None else np.ascontiguousarray(w.minima),
        None if w.kept is None else np.ascontiguousarray(w.kept),
        packed,
        threads,
    )
    if found[0]:
        raise LayoutError(f"{layout.name} weights hold {_fault(layout, *found)}")
    return PackedWeights(layout, n, k, packed, w.block, w.minima is not None)


def unpack(packed: PackedWeights, *, threads: int = 0) -> QuantisedWeights:
    """The inverse of `pack`.

    Raises:
        LayoutError: the packed bytes are malformed.
    """
    validate(packed, threads=threads)
    n, k = packed.n, packed.k
    shape = (n, block_count(k, packed.block))
    values = np.empty((n, k), np.int8)
    scales = np.empty(shape, np.uint16)
    minima = np.empty(shape, np.int8) if packed.minima else None
    kept = np.empty((n, -(-k // _TILE)), np.uint32) if is_sparse(packed.layout) else None
    _native.lowbit_unpack(packed.native, values, scales, minima, kept, threads)
    return QuantisedWeights(values, scales.view(np.float16), packed.block, minima, kept)


def validate(packed: PackedWeights, *, threads: int = 0) -> None:
    """Checks what the kernels rely on, and that equal weights have equal bytes.

    Raises:
        LayoutError: places that are no placement, the value -128, a scale that is negative or not
            finite, a minimum out of range, or something in the padding.
    """
    if packed.layout not in _LOWBIT:
        raise LayoutError(f"{packed.layout.name} has no int8 or int4 values")
    found = _native.lowbit_check(packed.native, threads)
    if found[0]:
        raise LayoutError(
            f"packed {packed.layout.name} weights hold {_fault(packed.layout, *found)}. "
            "The file is damaged or has another layout or shape: build the engine again."
        )


def int8_values(layout: Layout, weights: QuantisedWeights) -> npt.NDArray[np.int8]:
    """(n, k) values, -127 to 127, of int4 levels too; 0 where not kept."""
    values = weights.values.astype(np.int16)
    if is_int4(layout):
        minima: Any = SYMMETRIC_MINIMUM
        if weights.minima is not None:
            minima = np.repeat(weights.minima.astype(np.int16), weights.block, axis=1)
            minima = minima[:, : values.shape[1]]
        values = STEP * values + minima
    if weights.kept is not None:
        values = np.where(keep_of_words(weights.kept, values.shape[1]), values, 0)
    return values.astype(np.int8)


def dequantise(layout: Layout, weights: QuantisedWeights) -> npt.NDArray[np.float32]:
    """(n, k) float32 weights, exactly what the layout stands for."""
    values = int8_values(layout, weights)
    scales = np.repeat(weights.scales.astype(np.float32), weights.block, axis=1)
    return values.astype(np.float32) * scales[:, : values.shape[1]]


_LOWBIT = frozenset(Layout) - {Layout.SPARSE24_BF16, Layout.DENSE_BF16}


def _require(name: str, array: npt.NDArray[Any], dtype: Any, shape: tuple[int, int]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise LayoutError(
            f"{name} are {np.dtype(dtype)} of {shape}, not {array.dtype} of {array.shape}"
        )


def _fault(layout: Layout, fault: int, row: int, place: int, value: int) -> str:
    kept = "2:4" if layout in (Layout.SPARSE24_INT8, Layout.SPARSE24_INT4) else "16 of 32"
    return f"{_FAULTS[fault].format(kept=kept)} at row {row}, input {place} (0x{value:x})"
