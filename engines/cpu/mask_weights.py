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
from engines.layout import PackedWeights, pack_sparse, unpack
from engines.manifest import COMPLEMENT_FILE
from engines.patch import make_patch
from engines.tensorfile import TensorFile
from maskgen.maskfile import Mask
from maskgen.patterns import PAIRS

NativePatch = tuple[
    npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.uint16]
]
"""(row_start, group, codes, delta) of an `engines.patch.Patch`, as the native decoder takes it."""


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


def patches_of(source: DenseSource, mask: Mask) -> list[list[NativePatch | None]]:
    """A mask as differences to the base mask, per layer and linear; None where there is none."""
    patches: list[list[NativePatch | None]] = [[None] * len(LINEARS) for _ in source.base]
    for layer, number, dense, codes in source.layers(mask):
        patch = make_patch(dense, codes, mask.codes[source.config.module(layer, LINEARS[number])])
        if patch.group.size:
            delta = patch.delta.view(np.uint16)
            patches[layer][number] = (patch.row_start, patch.group, patch.codes, delta)
    return patches


def copies_of(source: DenseSource, mask: Mask) -> list[list[PackedWeights]]:
    """A mask as a full set of packed weights; what it leaves alone is shared with the base."""
    copies = [list(layer) for layer in source.base]
    for layer, number, dense, codes in source.layers(mask):
        new = mask.codes[source.config.module(layer, LINEARS[number])]
        if not np.array_equal(codes, new):
            copies[layer][number] = pack_sparse(dense, new)
    return copies


def patch_bytes(patches: list[list[NativePatch | None]]) -> int:
    """Memory that patches take."""
    return sum(a.nbytes for layer in patches for p in layer if p is not None for a in p)
