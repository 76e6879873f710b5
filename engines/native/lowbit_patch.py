"""Patches of int8 and int4 layers: which inputs two masks keep differently, with their values.

A mask changes neither values nor scales nor minima, so an input that is newly kept or newly dropped
is all that there is to say: its place (4 bytes) and its value (1 byte), whatever the layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from engines.errors import PatchError
from engines.native import _native
from engines.native.kernels import native_errors
from engines.native.layout import PackedWeights

REMOVES = np.uint32(1 << 31)
"""Set in the place of an input that is dropped."""


@dataclass(frozen=True, eq=False)
class LowbitPatch:
    """What distinguishes a mask of an n x k layer from the base mask.

    Attributes:
        n: outputs.
        k: inputs.
        row_start: (n + 1,) uint32; row r's changes are `row_start[r]:row_start[r + 1]`.
        place: (changes,) uint32, inputs of a row, rising; with `REMOVES` where dropped.
        value: (changes,) int8, the inputs' values (of int4, `8 level + minimum`).
    """

    n: int
    k: int
    row_start: npt.NDArray[np.uint32]
    place: npt.NDArray[np.uint32]
    value: npt.NDArray[np.int8]

    @cached_property
    def native(self) -> _native.LowbitPatchArrays:
        """The same arrays as kernels and decoder take them.

        Raises:
            ValueError: they do not fit together.
        """
        return _native.LowbitPatchArrays(self.n, self.k, self.row_start, self.place, self.value)

    @property
    def nbytes(self) -> int:
        """Bytes that the patch keeps resident."""
        return self.row_start.nbytes + self.place.nbytes + self.value.nbytes

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """(changes,) rising places, counted through the whole layer."""
        starts = self.row_start.astype(np.int64)
        rows = np.repeat(np.arange(self.n), starts[1:] - starts[:-1])
        return rows * self.k + (self.place & ~REMOVES)

    def changed_groups(self, size: int) -> int:
        """Groups of `size` inputs in which the masks differ."""
        return int(np.unique(self.positions // size).size)


def make_lowbit_patch(
    values: npt.NDArray[np.int8], base: npt.NDArray[np.bool_], new: npt.NDArray[np.bool_]
) -> LowbitPatch:
    """The patch from one mask of a layer to another.

    Args:
        values: (n, k) of `engines.native.lowbit.int8_values`, right where the masks differ.
        base: (n, k), True for kept, of the mask that the packed weights hold.
        new: (n, k) of the other mask.

    Raises:
        PatchError: shapes differ.
    """
    if not values.shape == base.shape == new.shape:
        raise PatchError(f"values {values.shape} and masks {base.shape}, {new.shape} differ")
    rows, inputs = np.nonzero(base != new)
    place = inputs.astype(np.uint32)
    place[base[rows, inputs]] |= REMOVES
    n, k = values.shape
    return _patch(n, k, rows, place, values[rows, inputs])


def rewrite(patch: LowbitPatch, packed: PackedWeights, *, revert: bool, threads: int) -> bool:
    """Change packed weights to the patch's mask, or back; False if they hold another one.

    Raises:
        KernelError: the layer is of another kind or shape.
    """
    with native_errors():
        return _native.lowbit_patch_apply(
            patch.native,
            int(packed.layout),
            packed.block,
            packed.minima,
            packed.data,
            revert,
            threads,
        )


def add_lowbit_product(
    patch: LowbitPatch,
    base: PackedWeights,
    x: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.uint32],
    out: npt.NDArray[np.float32],
) -> None:
    """Add the patch's product to chosen rows of a product with the base weights.

    Args:
        patch: of an n x k layer.
        base: the packed layer, whose scales count.
        x: (batch, k), the whole batch's activations.
        tokens: rows of the batch that use the patch's mask.
        out: (batch, n), the base product, changed in place.

    Raises:
        KernelError: shapes do not fit, or a token is beyond the batch.
    """
    with native_errors():
        _native.lowbit_patch_add(
            patch.native, base.native, x, np.ascontiguousarray(tokens, np.uint32), out
        )


def inverse_lowbit(patch: LowbitPatch) -> LowbitPatch:
    """The patch back."""
    return replace(patch, place=patch.place ^ REMOVES)


def rebase_lowbit(patch: LowbitPatch, base: LowbitPatch) -> LowbitPatch:
    """The patch to `patch`'s mask from that of `base`; both start from one old base mask.

    Raises:
        PatchError: the two are of different shapes, or start from different masks.
    """
    if (patch.n, patch.k) != (base.n, base.k):
        raise PatchError(
            f"a patch of {patch.n} x {patch.k} has no base of {base.n} x {base.k} weights"
        )
    # What both change the same way is no difference; what only `base` does is undone.
    mine, theirs = patch.positions, base.positions
    common, of_mine, of_theirs = np.intersect1d(
        mine, theirs, assume_unique=True, return_indices=True
    )
    if np.any(patch.place[of_mine] != base.place[of_theirs]):
        raise PatchError("the two patches start from different masks")
    own, undone = ~np.isin(mine, common), ~np.isin(theirs, common)
    positions = np.concatenate([mine[own], theirs[undone]])
    place = np.concatenate([patch.place[own], base.place[undone] ^ REMOVES])
    value = np.concatenate([patch.value[own], base.value[undone]])
    order = np.argsort(positions)
    return _patch(base.n, base.k, positions[order] // base.k, place[order], value[order])


def _patch(
    n: int,
    k: int,
    rows: npt.NDArray[np.int64],
    place: npt.NDArray[np.uint32],
    value: npt.NDArray[np.int8],
) -> LowbitPatch:
    counts = np.bincount(rows, minlength=n)
    row_start = np.concatenate(([0], np.cumsum(counts))).astype(np.uint32)
    return LowbitPatch(n, k, row_start, place, value)
