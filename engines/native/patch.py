"""Patches: the difference between two masks of one layer, at a cost that follows what changed.

A mask never changes weights, so a group that two masks keep differently is described by the weights
that appear and those that vanish. A patch stores, per changed group, its place, both codes and four
bf16 differences (13 bytes); applied to packed base weights it turns them into the other mask's in
place, and its product added to the base mask's output gives the other mask's output for chosen rows
of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import PatchError
from engines.native import _native
from engines.native.kernels import matrix_bits, native_errors
from engines.native.layout import BF16, PackedWeights
from engines.native.lowbit_patch import LowbitPatch, inverse_lowbit, rebase_lowbit, rewrite
from maskgen.format.two_four import PLACEMENTS

_SIGN = 0x8000


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
            newly dropped, 0 elsewhere.
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

    def changed_groups(self, size: int) -> int:
        """Groups of `size` inputs in which the masks differ; only groups of four are known."""
        if size != 4:
            raise PatchError(f"a patch of bf16 weights counts groups of 4, not of {size}")
        return len(self.group)

    @cached_property
    def native(self) -> _native.PatchArrays:
        """The same arrays as kernels and decoder take them.

        Raises:
            ValueError: they do not fit together.
        """
        delta = np.ascontiguousarray(self.delta).view(np.uint16)
        return _native.PatchArrays(self.n, self.k, self.row_start, self.group, self.codes, delta)

    @property
    def nbytes(self) -> int:
        """Bytes that the patch keeps resident."""
        return self.row_start.nbytes + self.group.nbytes + self.codes.nbytes + self.delta.nbytes


AnyPatch = Patch | LowbitPatch
"""A patch of a layer, by the type of its values."""


def make_patch(
    weights: npt.NDArray[Any],
    base_codes: npt.NDArray[np.uint8],
    new_codes: npt.NDArray[np.uint8],
) -> Patch:
    """The patch from one mask of a layer to another.

    Args:
        weights: (n, k) bf16, the dense weights; only changed groups are read.
        base_codes: (n, k/4) codes of the mask that the packed weights hold.
        new_codes: (n, k/4) codes of the other mask.

    Raises:
        PatchError: shapes, dtypes or codes are wrong.
    """
    if weights.dtype != BF16 or weights.ndim != 2 or weights.shape[1] % 4:
        raise PatchError(
            f"weights must be a bfloat16 matrix whose width is a multiple of 4, "
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
    changed = weights.reshape(n, k // 4, 4)[rows, groups].view(np.uint16)
    kept_before, kept_after = PLACEMENTS[base], PLACEMENTS[new]
    negated = changed ^ np.uint16(_SIGN)
    delta = np.where(kept_after & ~kept_before, changed, np.uint16(0))
    delta = np.where(kept_before & ~kept_after, negated, delta)
    delta[delta == _SIGN] = 0
    counts = np.bincount(rows, minlength=n)
    return Patch(
        n=n,
        k=k,
        row_start=_row_start(counts),
        group=groups.astype(np.uint32),
        codes=base | new << np.uint8(4),
        delta=np.ascontiguousarray(delta).view(BF16),
    )


def apply_patch(patch: AnyPatch, packed: PackedWeights, *, threads: int = 0) -> None:
    """Changes packed base weights, in place, to those of the patch's mask.

    Raises:
        PatchError: the weights do not hold the base mask (nothing is changed then).
    """
    _rewrite(patch, packed, revert=False, threads=threads)


def revert_patch(patch: AnyPatch, packed: PackedWeights, *, threads: int = 0) -> None:
    """Undoes `apply_patch`, byte for byte.

    Raises:
        PatchError: the weights do not hold the patch's mask (nothing is changed then).
    """
    _rewrite(patch, packed, revert=True, threads=threads)


def inverse(patch: AnyPatch) -> AnyPatch:
    """The patch back: from the mask that `patch` makes to the base mask."""
    if isinstance(patch, LowbitPatch):
        return inverse_lowbit(patch)
    bits = patch.delta.view(np.uint16)
    negated = np.where(bits == 0, bits, bits ^ np.uint16(_SIGN))
    return replace(
        patch,
        codes=patch.codes >> np.uint8(4) | patch.codes << np.uint8(4),
        delta=negated.view(BF16),
    )


def rebase(patch: AnyPatch, base: AnyPatch) -> AnyPatch:
    """The patch to `patch`'s mask from that of `base`; both start from one old base mask.

    Raises:
        PatchError: the two are of different shapes or types, or start from different masks.
    """
    if isinstance(patch, LowbitPatch) and isinstance(base, LowbitPatch):
        return rebase_lowbit(patch, base)
    if isinstance(patch, LowbitPatch) or isinstance(base, LowbitPatch):
        raise PatchError(
            "a patch of bf16 weights has no base of int8 or int4 ones, nor the reverse"
        )
    if (patch.n, patch.k) != (base.n, base.k):
        raise PatchError(
            f"a patch of {patch.n} x {patch.k} has no base of {base.n} x {base.k} weights"
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
    to, undone = np.zeros((2, union.size, 4), np.uint16)
    to[mine] = patch.delta.view(np.uint16)
    undone[theirs] = base.delta.view(np.uint16)
    delta = np.where(undone == 0, to, np.where(to == undone, 0, undone ^ np.uint16(_SIGN)))
    changed = placed != new
    counts = np.bincount(union[changed] // groups, minlength=base.n)
    return Patch(
        n=base.n,
        k=base.k,
        row_start=_row_start(counts),
        group=(union[changed] % groups).astype(np.uint32),
        codes=placed[changed] | new[changed] << np.uint8(4),
        delta=np.ascontiguousarray(delta[changed]).view(BF16),
    )


def add_patch_product(
    patch: Patch,
    x: npt.NDArray[Any],
    tokens: npt.NDArray[np.uint32],
    out: npt.NDArray[np.float32],
    *,
    threads: int = 0,
    isa: str | None = None,
) -> None:
    """Adds the patch's product to chosen rows of a product with the base weights.

    Args:
        patch: of an n x k layer.
        x: (batch, k), float32 or bf16: the whole batch's activations.
        tokens: rows of the batch that use the patch's mask.
        out: (batch, n) float32, the base product, changed in place; round it only afterwards.
        threads: 0 uses OpenMP's own number.
        isa: as for `engines.native.kernels.linear`.

    Raises:
        KernelError: shapes do not fit, or a token is beyond the batch.
    """
    with native_errors():
        _native.patch_add(
            patch.native,
            matrix_bits(x, "x"),
            np.ascontiguousarray(tokens, np.uint32),
            matrix_bits(out, "out"),
            threads,
            isa,
        )


def _rewrite(patch: AnyPatch, packed: PackedWeights, *, revert: bool, threads: int) -> None:
    lowbit, layout = isinstance(patch, LowbitPatch), packed.layout
    patchable = layout.sparse and layout.lowbit == lowbit
    if not patchable or (packed.n, packed.k) != (patch.n, patch.k):
        kind = "sparse int8 or int4" if lowbit else "2:4"
        raise PatchError(
            f"a patch for a {kind} layer of {patch.n} x {patch.k} cannot change "
            f"{packed.layout.name} weights of {packed.n} x {packed.k}"
        )
    if not packed.data.flags.writeable:
        raise PatchError("the packed weights are read-only; copy them to patch them in place")
    if isinstance(patch, LowbitPatch):
        fits = rewrite(patch, packed, revert=revert, threads=threads)
    else:
        with native_errors():
            fits = _native.patch_apply(patch.native, packed.data, revert, threads)
    if not fits:
        expected = "the patch's mask" if revert else "the base mask"
        raise PatchError(f"the packed weights do not hold {expected}; nothing was changed")


def _places(patch: Patch) -> npt.NDArray[np.int64]:
    """(changed,) rising numbers of the changed groups, counted through the whole layer."""
    starts = patch.row_start.astype(np.int64)
    rows = np.repeat(np.arange(patch.n), starts[1:] - starts[:-1])
    return rows * (patch.k // 4) + patch.group


def _row_start(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.uint32)
