"""Weights of a further mask: as a difference to the base mask's, or as a full packed set.

Both come from the base mask's packed layers and `complement.safetensors`, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.cpu.build import BF16
from engines.cpu.config import LINEARS, DecoderConfig
from engines.errors import EngineDirectoryError
from engines.layout import Layout, PackedWeights, pack_sparse, unpack
from engines.manifest import COMPLEMENT_FILE
from engines.tensorfile import TensorFile
from maskgen.maskfile import Mask
from maskgen.patterns import PAIRS, PATTERNS

Patch = tuple[
    npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.uint16]
]
"""(row_start, group, codes, delta), as `engines/csrc/kernels/kernels.h` describes them."""


@dataclass(frozen=True)
class DenseSource:
    """Where the weights that a mask newly keeps are read from.

    Args:
        directory: the engine directory.
        config: the model's sizes.
        base: packed layers of the base mask, in the order of `LINEARS`.
    """

    directory: Path
    config: DecoderConfig
    base: list[list[PackedWeights]]

    def layers(
        self, mask: Mask
    ) -> Iterator[tuple[int, int, npt.NDArray[Any], npt.NDArray[np.uint8]]]:
        """(layer, linear, dense bf16 weights, base codes) of every layer that the mask lists.

        Raises:
            EngineDirectoryError: the complement is missing or of another shape.
        """
        complement = TensorFile(self.directory / COMPLEMENT_FILE)
        for layer in range(self.config.layers):
            for number, linear in enumerate(LINEARS):
                name = self.config.module(layer, linear)
                if name not in mask.codes:
                    continue
                dense, codes = unpack(self.base[layer][number])
                if codes is None:
                    raise EngineDirectoryError(f"{name} is dense in this engine")
                dropped = complement.tensor(f"{name}.dropped")
                fill_dropped(dense, codes, dropped)
                complement.release(f"{name}.dropped")
                yield layer, number, dense, codes


def fill_dropped(
    dense: npt.NDArray[Any], codes: npt.NDArray[np.uint8], dropped: npt.NDArray[Any]
) -> None:
    """Put the (n, k/2) values that (n, k/4) codes drop back into (n, k) masked weights.

    Raises:
        EngineDirectoryError: `dropped` has another type or shape.
    """
    if dropped.shape != (dense.shape[0], dense.shape[1] // 2) or dropped.dtype != BF16:
        raise EngineDirectoryError(
            f"the complement is {dropped.dtype} {dropped.shape}, weights are {dense.shape}"
        )
    groups = dense.view(np.uint16).reshape(*codes.shape, 4)
    pairs = dropped.view(np.uint16).reshape(*codes.shape, 2)
    np.put_along_axis(groups, PAIRS[5 - codes].astype(np.intp), pairs, axis=-1)


def make_patch(
    dense: npt.NDArray[Any], base: npt.NDArray[np.uint8], new: npt.NDArray[np.uint8]
) -> Patch | None:
    """What to add to the product with the base mask to get the new mask's; None if nothing.

    Args:
        dense: (n, k) bf16 weights, nothing dropped.
        base, new: (n, k/4) codes.
    """
    rows, groups = np.nonzero(base != new)
    if rows.size == 0:
        return None
    row_start = np.zeros(base.shape[0] + 1, np.uint32)
    np.cumsum(np.bincount(rows, minlength=base.shape[0]), out=row_start[1:])
    before, after = base[rows, groups], new[rows, groups]
    values = dense.view(np.uint16).reshape(*base.shape, 4)[rows, groups]
    kept, wanted = PATTERNS[before], PATTERNS[after]
    # -0.0 is stored as 0.0, here as in packed weights; flipping the sign bit subtracts.
    values = np.where(values == 0x8000, np.uint16(0), values)
    removed = np.where(values == 0, values, values ^ np.uint16(0x8000))
    delta = np.where(wanted & ~kept, values, np.where(kept & ~wanted, removed, np.uint16(0)))
    codes = (before | (after << np.uint8(4))).astype(np.uint8)
    return row_start, groups.astype(np.uint32), codes, np.ascontiguousarray(delta, np.uint16)


def patches_of(source: DenseSource, mask: Mask) -> list[list[Patch | None]]:
    """A mask as differences to the base mask, per layer and linear."""
    patches: list[list[Patch | None]] = [[None] * len(LINEARS) for _ in source.base]
    for layer, number, dense, codes in source.layers(mask):
        name = source.config.module(layer, LINEARS[number])
        patches[layer][number] = make_patch(dense, codes, mask.codes[name])
    return patches


def copies_of(source: DenseSource, mask: Mask) -> list[list[PackedWeights]]:
    """A mask as a full set of packed weights; what it leaves alone is shared with the base."""
    copies = [list(layer) for layer in source.base]
    for layer, number, dense, codes in source.layers(mask):
        new = mask.codes[source.config.module(layer, LINEARS[number])]
        if not np.array_equal(codes, new):
            copies[layer][number] = pack_sparse(dense, new)
    return copies


def patch_bytes(patches: list[list[Patch | None]]) -> int:
    """Memory that patches take."""
    return sum(a.nbytes for layer in patches for p in layer if p is not None for a in p)


def base_codes(base: list[list[PackedWeights]], config: DecoderConfig) -> dict[str, Any]:
    """Pattern codes of every sparse layer of a loaded engine, by module name."""
    return {
        config.module(layer, linear): unpack(weights)[1]
        for layer, row in enumerate(base)
        for linear, weights in zip(LINEARS, row, strict=True)
        if weights.layout is Layout.SPARSE24_BF16
    }
