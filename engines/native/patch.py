"""Patches: the difference between two masks of one layer, at a cost that follows what changed.

A mask never changes weights, so a group that two masks keep differently is described by the weights
that appear and those that vanish. A patch stores, per changed group, its place, both codes and four
differences (13 bytes in bf16, 9 for layers of int8 and int4 values); applied to packed base weights
it turns them into the other mask's in place, and its product added to the base mask's output gives
the other mask's output for chosen rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import EngineError
from engines.native import _native
from engines.native.kernels import KernelError, matrix_bits, native_errors
from engines.native.layout import BF16, Layout, PackedWeights
from maskgen.format.two_four import PLACEMENTS

_SIGN = 0x8000
_LAYOUTS = (Layout.SPARSE24_INT8, Layout.SPARSE24_INT4)


class PatchError(EngineError, ValueError):
    """A patch that does not fit the masks or the weights it is used with."""


@dataclass(frozen=True, eq=False)
class Patch:
    """What distinguishes a mask of an n x k layer from the base mask.

    Attributes:
        n: outputs.
        k: inputs.
        row_start: (n + 1,) uint32; row r's changed groups are `row_start[r]:row_start[r + 1]`.
        group: (changed,) uint32, the group's index in its row, rising within a row.
        codes: (changed,) uint8, base code | new code << 4.
        delta: (changed, 4) bf16: the weight where it is newly kept, minus the weight where it is
            newly dropped, 0 elsewhere. For layers of int8 and int4 values: int8, the same of values
            (`engines.native.lowbit.int8_values`).
    """

    n: int
    k: int
    row_start: npt.NDArray[np.uint32]
    group: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint8]
    delta: npt.NDArray[Any]

    @property
    def changed_share(self) -> float:
        """Share of the layer's groups that differ, 0 to 1."""
        return len(self.group) / (self.n * self.k // 4)

    @cached_property
    def native(self) -> _native.PatchArrays:
        """The same arrays as kernels and decoder take them.

        Raises:
            ValueError: they do not fit together.
        """
        delta = np.ascontiguousarray(self.delta)
        bf16 = delta.view(np.uint16) if self.delta.dtype == BF16 else None
        return _native.PatchArrays(
            self.n,
            self.k,
            self.row_start,
            self.group,
            self.codes,
            bf16,
            delta if bf16 is None else None,
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the patch keeps resident."""
        return self.row_start.nbytes + self.group.nbytes + self.codes.nbytes + self.delta.nbytes


def make_patch(
    weights: npt.NDArray[Any],
    base_codes: npt.NDArray[np.uint8],
    new_codes: npt.NDArray[np.uint8],
) -> Patch:
    """The patch from one mask of a layer to another.

    Args:
        weights: (n, k), the dense weights, bf16, or int8 for layers of int8 and int4 values
            (`engines.native.lowbit.int8_values` without kept words); only changed groups are read.
        base_codes: (n, k/4) codes of the mask that the packed weights hold.
        new_codes: (n, k/4) codes of the other mask.

    Raises:
        PatchError: shapes, dtypes or codes are wrong.
    """
    if weights.dtype not in (BF16, np.int8) or weights.ndim != 2 or weights.shape[1] % 4:
        raise PatchError(
            f"weights must be a bfloat16 or int8 matrix whose width is a multiple of 4, "
            f"not {weights.dtype} of {weights.shape}"
        )
    n, k = weights.shape
    for name, codes in (("base", base_codes), ("new", new_codes)):
        if codes.dtype != np.uint8 or codes.shape != (n, k // 4):
            raise PatchError(
                f"{name} codes are uint8 of {(n, k // 4)}, not {codes.dtype} of {codes.shape}"
            )
        if codes.max() >= len(PLACEMENTS):
            raise PatchError(f"{name} codes go up to {codes.max()}; placements are 0 to 5")
    rows, groups = np.nonzero(base_codes != new_codes)
    base, new = base_codes[rows, groups], new_codes[rows, groups]
    changed = _bits(weights.reshape(n, k // 4, 4)[rows, groups])
    kept_before, kept_after = PLACEMENTS[base], PLACEMENTS[new]
    nothing = changed.dtype.type(0)
    delta = np.where(kept_after & ~kept_before, changed, nothing)
    delta = np.where(kept_before & ~kept_after, _negated(changed), delta)
    if delta.dtype == np.uint16:
        delta[delta == _SIGN] = 0
    counts = np.bincount(rows, minlength=n)
    return Patch(
        n=n,
        k=k,
        row_start=_row_start(counts),
        group=groups.astype(np.uint32),
        codes=base | new << np.uint8(4),
        delta=_delta(delta),
    )


def apply_patch(patch: Patch, packed: PackedWeights, *, threads: int = 0) -> None:
    """Changes packed base weights, in place, to those of the patch's mask.

    Raises:
        PatchError: the weights do not hold the base mask (nothing is changed then).
    """
    _rewrite(patch, packed, revert=False, threads=threads)


def revert_patch(patch: Patch, packed: PackedWeights, *, threads: int = 0) -> None:
    """Undoes `apply_patch`, byte for byte.

    Raises:
        PatchError: the weights do not hold the patch's mask (nothing is changed then).
    """
    _rewrite(patch, packed, revert=True, threads=threads)


def inverse(patch: Patch) -> Patch:
    """The patch back: from the mask that `patch` makes to the base mask."""
    return replace(
        patch,
        codes=patch.codes >> np.uint8(4) | patch.codes << np.uint8(4),
        delta=_delta(_negated(_bits(patch.delta))),
    )


def rebase(patch: Patch, base: Patch) -> Patch:
    """The patch to `patch`'s mask from that of `base`; both start from one old base mask.

    Raises:
        PatchError: the two are of different shapes or start from different masks.
    """
    if (patch.n, patch.k, patch.delta.dtype) != (base.n, base.k, base.delta.dtype):
        raise PatchError(
            f"a patch of {patch.n} x {patch.k} {patch.delta.dtype} has no base of "
            f"{base.n} x {base.k} {base.delta.dtype} weights"
        )
    groups = base.k // 4
    at, at_base = _places(patch), _places(base)
    union = np.union1d(at, at_base)
    mine, theirs = np.searchsorted(union, at), np.searchsorted(union, at_base)
    old = np.zeros(union.size, np.uint8)
    old[mine] = patch.codes & 15
    old[theirs] = base.codes & 15
    if np.any(old[mine] != patch.codes & 15):
        raise PatchError("the two patches start from different masks")
    new, placed = old.copy(), old
    new[mine] = patch.codes >> 4
    placed[theirs] = base.codes >> 4
    # A weight that both add, or both remove, is no difference; what only `base` does is undone.
    to, undone = np.zeros((2, union.size, 4), _bits(patch.delta).dtype)
    to[mine] = _bits(patch.delta)
    undone[theirs] = _bits(base.delta)
    nothing = to.dtype.type(0)
    delta = np.where(undone == 0, to, np.where(to == undone, nothing, _negated(undone)))
    changed = placed != new
    counts = np.bincount(union[changed] // groups, minlength=base.n)
    return Patch(
        n=base.n,
        k=base.k,
        row_start=_row_start(counts),
        group=(union[changed] % groups).astype(np.uint32),
        codes=placed[changed] | new[changed] << np.uint8(4),
        delta=_delta(delta[changed]),
    )


def add_patch_product(
    patch: Patch,
    x: npt.NDArray[Any],
    tokens: npt.NDArray[np.uint32],
    out: npt.NDArray[np.float32],
    *,
    weights: PackedWeights | None = None,
    threads: int = 0,
    isa: str | None = None,
) -> None:
    """Adds the patch's product to chosen rows of a product with the base weights.

    Args:
        patch: of an n x k layer.
        x: (batch, k), float32 or bf16: the whole batch's activations.
        tokens: rows of the batch that use the patch's mask.
        out: (batch, n) float32, the base product, changed in place; round it only afterwards.
        weights: the base weights, for their scales; not needed for bf16. x must be float32 then.
        threads: 0 uses OpenMP's own number.
        isa: as for `engines.native.kernels.linear`.

    Raises:
        KernelError: shapes or types do not fit, or a token is beyond the batch.
    """
    if patch.delta.dtype != BF16:
        if weights is None:
            raise KernelError("the product of a patch of int8 values needs the base weights")
        if x.dtype != np.float32:
            raise KernelError(f"x must be float32 for a patch of int8 values, not {x.dtype}")
        with native_errors():
            _native.lowbit_patch_add(
                patch.native,
                weights.native,
                x,
                np.ascontiguousarray(tokens, np.uint32),
                out,
                threads,
                isa,
            )
        return
    with native_errors():
        _native.patch_add(
            patch.native,
            matrix_bits(x, "x"),
            np.ascontiguousarray(tokens, np.uint32),
            matrix_bits(out, "out"),
            threads,
            isa,
        )


def _rewrite(patch: Patch, packed: PackedWeights, *, revert: bool, threads: int) -> None:
    layouts = _LAYOUTS if patch.delta.dtype != BF16 else (Layout.SPARSE24_BF16,)
    if packed.layout not in layouts or (packed.n, packed.k) != (patch.n, patch.k):
        raise PatchError(
            f"a patch for a 2:4 layer of {patch.n} x {patch.k} {patch.delta.dtype} cannot change "
            f"{packed.layout.name} weights of {packed.n} x {packed.k}"
        )
    if not packed.data.flags.writeable:
        raise PatchError("the packed weights are read-only; copy them to patch them in place")
    with native_errors():
        if packed.layout is Layout.SPARSE24_BF16:
            fits = _native.patch_apply(patch.native, packed.data, revert, threads)
        else:
            fits = _native.lowbit_patch_apply(
                patch.native,
                int(packed.layout),
                packed.block,
                packed.minima,
                packed.data,
                revert,
                threads,
            )
    if not fits:
        expected = "the patch's mask" if revert else "the base mask"
        raise PatchError(f"the packed weights do not hold {expected}; nothing was changed")


def _bits(delta: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """bf16 as uint16, which numpy handles faster; int8 as it is."""
    return delta.view(np.uint16) if delta.dtype == BF16 else delta


def _delta(bits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse of `_bits`, contiguous."""
    whole = np.ascontiguousarray(bits)
    return whole.view(BF16) if whole.dtype == np.uint16 else whole


def _negated(bits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Minus each number; 0 stays 0.0."""
    if bits.dtype == np.uint16:
        return np.where(bits == 0, bits, bits ^ np.uint16(_SIGN))
    return -bits


def _places(patch: Patch) -> npt.NDArray[np.int64]:
    """(changed,) rising numbers of the changed groups, counted through the whole layer."""
    starts = patch.row_start.astype(np.int64)
    rows = np.repeat(np.arange(patch.n), starts[1:] - starts[:-1])
    return rows * (patch.k // 4) + patch.group


def _row_start(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.uint32)
