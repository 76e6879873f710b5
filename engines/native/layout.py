"""Packed weights: the layouts that the native kernels read, and bf16's way in and out.

`engines.native.lowbit` packs the layouts of int8 and int4 values. Layout ids and sizes are those of
`engines/csrc/kernels/layout.h`; docs/kernels.md and docs/formats.md show them. bf16 is
`ml_dtypes.bfloat16` throughout. Packing, unpacking and checking run on all threads, without the
GIL.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engines.errors import EngineError
from engines.native import _native
from maskgen.format.pattern import TWO_FOUR, Pattern

VERSION = _native.LAYOUT_VERSION
BF16 = np.dtype(ml_dtypes.bfloat16)

_HUGE_PAGE = 2 << 20
_FAULT_CODE, _FAULT_PADDING = 1, 2


class Layout(IntEnum):
    """How packed weights lie in memory. The numbers are stored in engine directories."""

    SPARSE24_BF16 = 1
    DENSE_BF16 = 2
    DENSE_INT8 = 3
    DENSE_INT4 = 4
    SPARSE24_INT8 = 5
    SPARSE24_INT4 = 6
    BITMAP32_INT8 = 7
    BITMAP32_INT4 = 8

    @property
    def lowbit(self) -> bool:
        """Whether values are int8 or int4."""
        return self >= Layout.DENSE_INT8

    @property
    def sparse(self) -> bool:
        """Whether rows keep half of their inputs."""
        return self not in (Layout.DENSE_BF16, Layout.DENSE_INT8, Layout.DENSE_INT4)

    @property
    def values(self) -> str:
        """Type of the values: `bf16`, `int8` or `int4`."""
        return self.name.rpartition("_")[2].lower()


def sparse_layout(pattern: Pattern, values: str) -> Layout:
    """The layout of what masks of a pattern keep; see `engines.mask_rules` for which there are."""
    return Layout[f"{'sparse24' if pattern == TWO_FOUR else 'bitmap32'}_{values}".upper()]


def dense_layout(values: str) -> Layout:
    """The layout of layers that keep all weights."""
    return Layout[f"dense_{values}".upper()]


class LayoutError(EngineError, ValueError):
    """Weights that do not have the layout, the shape or the codes that they should."""


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """One linear layer's weights in a kernel layout.

    Attributes:
        layout: which layout.
        n: outputs.
        k: inputs.
        data: the packed bytes, uint8, contiguous; as many as `packed_bytes` says.
        block: inputs that share a scale, 32, 64 or 128; 0 for bf16.
        minima: whether each block has a minimum of its own; only int4 may.

    Raises:
        LayoutError: the shape is impossible, or `data` has another size. What the bytes say is not
            looked at: call `validate` on weights that come from a file.
    """

    layout: Layout
    n: int
    k: int
    data: npt.NDArray[np.uint8]
    block: int = 0
    minima: bool = False

    def __post_init__(self) -> None:
        expected = packed_bytes(self.layout, self.n, self.k, self.block, self.minima)
        if self.data.dtype != np.uint8 or self.data.shape != (expected,):
            raise LayoutError(
                f"{self.layout.name} weights of {self.n} x {self.k} are {expected} uint8 values, "
                f"not {self.data.dtype} of shape {self.data.shape}"
            )
        if not self.data.flags.c_contiguous:
            raise LayoutError("packed weights must be contiguous")

    @cached_property
    def native(self) -> _native.PackedLayer:
        """The same bytes as kernels and decoder take them."""
        return _native.PackedLayer(
            int(self.layout), self.n, self.k, self.data, self.block, self.minima
        )


def packed_bytes(layout: Layout, n: int, k: int, block: int = 0, minima: bool = False) -> int:
    """Bytes of an n x k layer; rows are padded to 16 and inputs to 32.

    Raises:
        LayoutError: n or k is not positive, a sparse layer's k is not a multiple of 4, or the
            layout cannot have this block or minima.
    """
    if n < 1 or k < 1 or n >= 2**31 or k >= 2**31:
        raise LayoutError(f"a layer of {n} x {k} is not possible; both must be 1 to 2^31 - 1")
    if layout is Layout.SPARSE24_BF16 and k % 4:
        raise LayoutError(f"a 2:4 layer's width must be a multiple of 4, not {k}; keep it dense")
    try:
        return _native.packed_bytes(int(layout), n, k, block, minima)
    except ValueError as error:
        raise LayoutError(f"{layout.name}: {error}") from None


def empty(size: int) -> npt.NDArray[np.uint8]:
    """Uninitialised bytes, aligned to a huge page and backed by huge pages where that pays.

    Weights are read from end to end on every step, and 4 KiB pages cost a TLB miss each.
    """
    if size < _HUGE_PAGE:
        block = np.empty(size + 64, np.uint8)
        return block[-block.ctypes.data % 64 :][:size]
    # Private: Python's default, shared memory, gets no huge pages unless the system is told to.
    region = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(region, np.uint8)
    return whole[-whole.ctypes.data % _HUGE_PAGE :][:size]


def pack_sparse(
    weights: npt.NDArray[Any], codes: npt.NDArray[np.uint8], *, threads: int = 0
) -> PackedWeights:
    """Packs what a mask keeps of a layer.

    Args:
        weights: (n, k) bf16, dense; what the mask drops is ignored. -0.0 is stored as 0.0.
        codes: (n, k/4) placement codes, 0 to 5.
        threads: 0 uses OpenMP's own number.

    Raises:
        LayoutError: wrong dtype or shape, k not a multiple of 4, or a code above 5.
    """
    dense = _bf16_bits(weights)
    n, k = dense.shape
    packed = empty(packed_bytes(Layout.SPARSE24_BF16, n, k))
    if codes.dtype != np.uint8 or codes.shape != (n, k // 4):
        raise LayoutError(
            f"codes for weights of {n} x {k} are uint8 of {(n, k // 4)}, "
            f"not {codes.dtype} of {codes.shape}"
        )
    good = _native.pack(
        int(Layout.SPARSE24_BF16), dense, np.ascontiguousarray(codes), packed, threads
    )
    if not good:
        raise LayoutError(f"placement codes are 0 to 5, but these go up to {codes.max()}")
    return PackedWeights(Layout.SPARSE24_BF16, n, k, packed)


def pack_dense(weights: npt.NDArray[Any], *, threads: int = 0) -> PackedWeights:
    """Packs (n, k) bf16 weights for the dense kernels.

    Raises:
        LayoutError: wrong dtype or shape.
    """
    dense = _bf16_bits(weights)
    n, k = dense.shape
    packed = empty(packed_bytes(Layout.DENSE_BF16, n, k))
    _native.pack(int(Layout.DENSE_BF16), dense, None, packed, threads)
    return PackedWeights(Layout.DENSE_BF16, n, k, packed)


def unpack(
    packed: PackedWeights, *, threads: int = 0
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
    """Dense bf16 weights (n, k), zero where dropped, and the codes (n, k/4); None if dense.

    Raises:
        LayoutError: the packed bytes are malformed.
    """
    validate(packed, threads=threads)
    dense = np.empty((packed.n, packed.k), np.uint16)
    codes = None
    if packed.layout is Layout.SPARSE24_BF16:
        codes = np.empty((packed.n, packed.k // 4), np.uint8)
    _native.unpack(packed.native, dense, codes, threads)
    return dense.view(BF16), codes


def validate(packed: PackedWeights, *, threads: int = 0) -> None:
    """Checks what the kernels rely on: every code is a placement, every byte of padding is zero.

    Raises:
        LayoutError: naming the first fault that a thread found.
    """
    _require_bf16(packed)
    fault, row, group, value = _native.check(packed.native, threads)
    if fault == _FAULT_CODE:
        raise LayoutError(
            f"packed weights hold code {value} at row {row}, group {group}; placements are 0 to 5. "
            "The file is damaged or was packed for another layout: build the engine again."
        )
    if fault == _FAULT_PADDING:
        raise LayoutError(
            f"packed weights of {packed.n} x {packed.k} are not zero beyond the last row or input. "
            "The file is damaged or has another shape: build the engine again."
        )


def _bf16_bits(weights: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    if weights.dtype != BF16 or weights.ndim != 2:
        raise LayoutError(
            f"weights must be a bfloat16 matrix, not {weights.dtype} of shape {weights.shape}"
        )
    return np.ascontiguousarray(weights).view(np.uint16)


def _require_bf16(packed: PackedWeights) -> None:
    if packed.layout not in (Layout.SPARSE24_BF16, Layout.DENSE_BF16):
        raise LayoutError(
            f"{packed.layout.name} weights are not bf16: use engines.native.lowbit for them"
        )
