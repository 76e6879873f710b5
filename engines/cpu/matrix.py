"""All weights of one linear layer, whatever a mask keeps of them, by the type of their values.

A *kept* array says what a mask keeps of a layer: of bf16 weights its placement codes, (n, k/4); of
int8 and int4 ones booleans, (n, k), True for kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engines.errors import EngineDirectoryError
from engines.native import lowbit
from engines.native.layout import BF16, Layout, PackedWeights, pack_dense, pack_sparse, unpack
from engines.native.lowbit import QuantisedWeights
from engines.native.lowbit_patch import make_lowbit_patch
from engines.native.patch import AnyPatch, make_patch
from maskgen.format.pattern import Pattern
from maskgen.format.placements import Codes, keep_from_codes
from maskgen.format.two_four import PAIRS

_I8, _U8 = np.dtype(np.int8), np.dtype(np.uint8)

Kept = npt.NDArray[Any]


class Matrix(Protocol):
    """One layer's weights."""

    def pack(self, kept: Kept | None) -> PackedWeights:
        """What a mask keeps of the layer, packed; all of it with None."""

    def dropped(self, kept: Kept) -> npt.NDArray[Any]:
        """What a mask drops, row by row, by rising input, as the complement stores it."""

    def put_back(self, kept: Kept, dropped: npt.NDArray[Any], *needed: Kept) -> None:
        """Put what `kept` drops back: all, or at least where one of the `needed` masks differs.

        Raises:
            EngineDirectoryError: `dropped` has another type or shape.
        """

    def patch(self, old: Kept, new: Kept) -> AnyPatch:
        """The patch from one mask to another."""


def unpack_matrix(packed: PackedWeights) -> tuple[Matrix, Kept | None]:
    """A packed layer as the matrix that it keeps, and what it keeps; None where that is all.

    Raises:
        LayoutError: the packed bytes are malformed.
    """
    if not packed.layout.lowbit:
        dense, codes = unpack(packed)
        return Bf16Matrix(dense), codes
    weights = lowbit.unpack(packed)
    kept = None if weights.kept is None else lowbit.keep_of_words(weights.kept, packed.k)
    return LowbitMatrix(packed.layout, replace(weights, kept=None)), kept


def kept_of(codes: Codes, pattern: Pattern, layout: Layout) -> Kept:
    """What a mask's codes keep of a layer of this layout."""
    return keep_from_codes(codes, pattern) if layout.lowbit else codes


def changed_groups(old: Kept, new: Kept, size: int) -> int:
    """Groups of `size` inputs in which two masks of one layer differ."""
    differs = old != new
    if old.dtype == np.bool_:
        differs = differs.reshape(-1, size).any(axis=1)
    return int(np.count_nonzero(differs))


def dropped_shape(n: int, k: int, values: str) -> tuple[np.dtype[Any], tuple[int, int]]:
    """Type and shape of what `Matrix.dropped` gives for n x k weights."""
    if values == "bf16":
        return BF16, (n, k // 2)
    return (_I8, (n, k // 2)) if values == "int8" else (_U8, (n, k // 4))


@dataclass(frozen=True)
class Bf16Matrix:
    """bf16 weights.

    Attributes:
        dense: (n, k).
    """

    dense: npt.NDArray[Any]

    def pack(self, kept: Kept | None) -> PackedWeights:
        return pack_dense(self.dense) if kept is None else pack_sparse(self.dense, kept)

    def dropped(self, kept: Kept) -> npt.NDArray[Any]:
        # The complement of placement c is placement 5 - c.
        positions = PAIRS[5 - kept].astype(np.intp)
        groups = self.dense.reshape(*kept.shape, 4)
        picked = np.take_along_axis(groups.view(np.uint16), positions, axis=-1)
        return picked.reshape(self.dense.shape[0], -1).view(BF16)

    def put_back(self, kept: Kept, dropped: npt.NDArray[Any], *needed: Kept) -> None:
        _check_dropped(dropped, self.dense.shape, "bf16")
        differs = [kept != other for other in needed]
        chosen = np.flatnonzero(np.any(differs, axis=0)) if differs else np.arange(kept.size)
        groups = self.dense.view(np.uint16).reshape(-1, 4)
        pairs = dropped.view(np.uint16).reshape(-1, 2)[chosen]
        positions = PAIRS[5 - kept.reshape(-1)[chosen]]
        for place in range(2):
            groups[chosen, positions[:, place]] = pairs[:, place]

    def patch(self, old: Kept, new: Kept) -> AnyPatch:
        return make_patch(self.dense, old, new)


@dataclass(frozen=True)
class LowbitMatrix:
    """int8 values or int4 levels, with their scales.

    Attributes:
        layout: of what a mask keeps, or dense where there is none.
        weights: without `kept`.
    """

    layout: Layout
    weights: QuantisedWeights

    @property
    def _int4(self) -> bool:
        return lowbit.is_int4(self.layout)

    def pack(self, kept: Kept | None) -> PackedWeights:
        if kept is None:
            dense = Layout.DENSE_INT4 if self._int4 else Layout.DENSE_INT8
            return lowbit.pack(dense, self.weights)
        return lowbit.pack(self.layout, replace(self.weights, kept=lowbit.kept_words(kept)))

    def dropped(self, kept: Kept) -> npt.NDArray[Any]:
        values = self.weights.values[~kept].reshape(len(kept), -1)
        if not self._int4:
            return values
        pairs = values.view(np.uint8).reshape(len(kept), -1, 2)
        return pairs[..., 0] | pairs[..., 1] << np.uint8(4)

    def put_back(self, kept: Kept, dropped: npt.NDArray[Any], *needed: Kept) -> None:
        _check_dropped(dropped, kept.shape, "int4" if self._int4 else "int8")
        if self._int4:
            dropped = np.stack([dropped & 15, dropped >> 4], axis=-1).view(np.int8)
        elif np.any(dropped == -128):
            raise EngineDirectoryError("the complement holds the value -128, which is none")
        self.weights.values[~kept] = dropped.reshape(-1)

    def patch(self, old: Kept, new: Kept) -> AnyPatch:
        return make_lowbit_patch(lowbit.int8_values(self.layout, self.weights), old, new)


def _check_dropped(dropped: npt.NDArray[Any], shape: tuple[int, ...], values: str) -> None:
    dtype, expected = dropped_shape(shape[0], shape[1], values)
    if dropped.shape != expected or dropped.dtype != dtype:
        raise EngineDirectoryError(
            f"the complement is {dropped.dtype} {dropped.shape}, expected {dtype} {expected}"
        )
