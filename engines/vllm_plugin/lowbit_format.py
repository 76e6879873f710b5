"""Linear layers and tables of int8 and int4 values in a vLLM checkpoint.

A layer `L` of N outputs and K inputs, K a multiple of 8, is stored row by row, so that vLLM can cut
it by row, and by column at any multiple of a block of inputs:

    L.scales  f16   (N, blocks)  and, where blocks have minima, L.minima, int8 (N, blocks)
    L.values  int8  (N, K)       a dense layer's; int4: uint8 (N, K/2)
    L.kept    int8  (N, K/2)     a sparse layer's, by rising input; int4: uint8 (N, K/4)
    L.bitmap  uint8 (N, K/8)     what that keeps: input 8 j + i is bit i of byte j

int4 levels lie two a byte, the first in the low nibble. What a default mask drops lies in
`complement.safetensors` as `L.dropped`, as `L.kept` does here. docs/formats.md says what the
numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.directory.tensor_file import Array, TensorSpec
from engines.errors import EngineDirectoryError
from engines.native import lowbit
from engines.native.layout import LayoutError, PackedWeights, dense_layout, sparse_layout
from engines.native.lowbit import QuantisedWeights, block_count
from engines.vllm_plugin.format import DROPPED, KEPT, QuantizationSpec, pack_nibbles, unpack_nibbles
from maskgen.format.pattern import Pattern
from maskgen.format.placements import Codes, keep_from_codes

BITMAP, VALUES, SCALES, MINIMA = "bitmap", "values", "scales", "minima"
INPUTS_STEP = 8
"""Inputs that one byte of a bitmap covers."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LowbitForm:
    """How all layers of one kind are stored.

    Attributes:
        values: `int8` or `int4`.
        block: inputs of a row that share a scale.
        minima: whether int4 blocks have a minimum of their own.
        pattern: of the masks.
    """

    values: str
    block: int
    minima: bool
    pattern: Pattern

    @property
    def int4(self) -> bool:
        """Whether values are levels of four bits, two a byte."""
        return self.values == "int4"

    def parts(self, *, sparse: bool) -> tuple[str, ...]:
        """The tensors of a layer."""
        own = (KEPT, BITMAP) if sparse else (VALUES,)
        return (*own, SCALES, MINIMA) if self.minima else (*own, SCALES)

    def tensor(self, part: str, n: int, k: int) -> TensorSpec:
        """Type and shape of one of them."""
        if part == SCALES:
            return TensorSpec(np.dtype(np.float16), (n, block_count(k, self.block)))
        if part == MINIMA:
            return TensorSpec(np.dtype(np.int8), (n, block_count(k, self.block)))
        if part == BITMAP:
            return TensorSpec(np.dtype(np.uint8), (n, k // INPUTS_STEP))
        count = k if part == VALUES else k // 2
        if self.int4:
            return TensorSpec(np.dtype(np.uint8), (n, count // 2))
        return TensorSpec(np.dtype(np.int8), (n, count))

    def store(self, weights: QuantisedWeights, keep: Bools | None) -> dict[str, Array]:
        """The tensors of a layer, all of it or what `keep`, (n, k), says; and what that drops."""
        found: dict[str, Array] = {SCALES: weights.scales}
        if weights.minima is not None:
            found[MINIMA] = weights.minima
        if keep is None:
            return found | {VALUES: self._stored(weights.values)}
        rows = len(keep)
        return found | {
            BITMAP: bitmap_of(keep),
            KEPT: self._stored(weights.values[keep].reshape(rows, -1)),
            DROPPED: self._stored(weights.values[~keep].reshape(rows, -1)),
        }

    def load(self, parts: Mapping[str, Array], k: int) -> QuantisedWeights:
        """The inverse of `store`, of k inputs; without the bitmap, all of them are kept.

        Raises:
            EngineDirectoryError: the bitmap does not keep half of every row.
        """
        minima = parts[MINIMA] if self.minima else None
        if BITMAP not in parts:
            values = self._loaded(parts[VALUES])
            return QuantisedWeights(values, parts[SCALES], self.block, minima)
        keep = keep_of_bitmap(parts[BITMAP], k)
        kept = self._loaded(parts[KEPT])
        if np.any(np.count_nonzero(keep, axis=1) != kept.shape[1]):
            raise EngineDirectoryError("a bitmap does not keep half of its row")
        values = np.zeros(keep.shape, np.int8)
        values[keep] = kept.reshape(-1)
        words = lowbit.kept_words(keep)
        return QuantisedWeights(values, parts[SCALES], self.block, minima, words)

    def pack(self, parts: Mapping[str, Array], k: int) -> PackedWeights:
        """A stored layer in the layout of the kernels.

        Raises:
            EngineDirectoryError: the tensors hold what no layer does, such as what stands in their
                place before they are loaded.
        """
        sparse = BITMAP in parts
        layout = sparse_layout(self.pattern, self.values) if sparse else dense_layout(self.values)
        try:
            return lowbit.pack(layout, self.load(parts, k))
        except LayoutError as error:
            raise EngineDirectoryError(str(error)) from error

    def cut(
        self, parts: Mapping[str, Array], dropped: Array, old: Array, new: Array
    ) -> dict[str, Array]:
        """A sparse layer's tensors under another mask.

        Args:
            parts: the layer's tensors.
            dropped: what `old` drops.
            old: the bitmap of `parts`.
            new: another one.
        """
        k = old.shape[1] * INPUTS_STEP
        keep = keep_of_bitmap(old, k)
        whole = np.empty(keep.shape, np.int8)
        whole[keep] = self._loaded(parts[KEPT]).reshape(-1)
        whole[~keep] = self._loaded(dropped).reshape(-1)
        weights = QuantisedWeights(whole, parts[SCALES], self.block, parts.get(MINIMA))
        found = self.store(weights, keep_of_bitmap(new, k))
        del found[DROPPED]
        return found

    def _stored(self, values: npt.NDArray[np.int8]) -> Array:
        return pack_nibbles(values.view(np.uint8)) if self.int4 else values

    def _loaded(self, stored: Array) -> npt.NDArray[np.int8]:
        if self.int4:
            return unpack_nibbles(stored, 2 * stored.shape[1]).view(np.int8)
        return stored


def linear_form(spec: QuantizationSpec) -> LowbitForm | None:
    """How the linear layers of a checkpoint are stored; None where they are bf16."""
    if spec.values == "bf16":
        return None
    return LowbitForm(spec.values, spec.block, spec.minima, Pattern.parse(spec.pattern))


def table_form(spec: QuantizationSpec) -> LowbitForm | None:
    """How head and embedding are stored; None where they are bf16."""
    if spec.head == "bf16":
        return None
    return LowbitForm(spec.head, spec.head_block, minima=False, pattern=Pattern.parse(spec.pattern))


def bitmap_of_codes(codes: Codes, pattern: Pattern) -> Array:
    """What a mask keeps of a layer, as it is stored."""
    return bitmap_of(keep_from_codes(codes, pattern))


def bitmap_of(keep: Bools) -> Array:
    """(n, k) booleans, True for kept -> (n, k/8) bytes."""
    return np.packbits(keep, axis=1, bitorder="little")


def keep_of_bitmap(bitmap: Array, k: int) -> Bools:
    """The inverse of `bitmap_of`."""
    return np.unpackbits(bitmap, axis=1, bitorder="little")[:, :k].astype(np.bool_)
