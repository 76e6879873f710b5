"""Weights of a further mask: as a difference to the base mask's, or as a full packed set.

Both come from the base mask's packed layers and `complement.safetensors`, one layer at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.directory.decoder_config import LINEARS, DecoderConfig
from engines.directory.tied_file import TiedFile
from engines.errors import EngineDirectoryError
from engines.native._native import PatchArrays
from engines.native.layout import BF16, PackedWeights, pack_sparse, unpack
from engines.native.patch import Patch, apply_patch, make_patch
from maskgen.format.mask import Mask
from maskgen.format.placements import Codes
from maskgen.format.two_four import PAIRS

LayerPatches = list[list[Patch | None]]
"""By layer and linear, in the order of `LINEARS`; None where the masks agree."""

LayerWeights = list[list[PackedWeights]]
"""By layer and linear, in the order of `LINEARS`."""


@dataclass
class DenseSource:
    """Where the weights that a mask newly keeps are read from.

    Attributes:
        complement: what the base mask drops.
        config: the model's sizes.
        base: packed layers of the base mask.
        home: patches from the base mask to the one that the complement belongs to; None if that
            is the base mask itself.
    """

    complement: TiedFile
    config: DecoderConfig
    base: LayerWeights
    home: LayerPatches | None = None

    def changed_share(self, mask: Mask) -> float:
        """Share of the groups in which `mask` differs from the base mask, 0 to 1.

        The base's codes are read from the packed weights: kept beside them, a byte a group, they
        would take another 44 % of the sparse layers' memory.
        """
        changed, groups = 0, 0
        for layer, weights in enumerate(self.base):
            for linear, packed in zip(LINEARS, weights, strict=True):
                name = self.config.module(layer, linear)
                if name in mask.codes:
                    changed += int(np.count_nonzero(unpack(packed)[1] != mask.codes[name]))
                    groups += mask.codes[name].size
        return changed / groups

    def layers(self, mask: Mask) -> Iterator[tuple[int, int, npt.NDArray[Any], Codes, Codes]]:
        """(layer, linear, dense, base codes, new codes) of every layer in which `mask` differs.

        `dense` (bf16) holds what either mask keeps, and not all of the rest.

        Raises:
            EngineDirectoryError: the complement is missing, of another shape, or no longer that of
                the base; what was yielded before must not be used then.
        """
        with self.complement.reading() as complement:
            for layer, number in itertools.product(range(self.config.layers), range(len(LINEARS))):
                name = self.config.module(layer, LINEARS[number])
                if name not in mask.codes:
                    continue
                dense, codes = unpack(self.base[layer][number])
                if codes is None:
                    raise EngineDirectoryError(f"{name} is dense in this engine")
                new = mask.codes[name]
                if np.array_equal(codes, new):
                    continue
                home = codes
                if self.home is not None and (patch := self.home[layer][number]) is not None:
                    dense, home = _at_home(self.base[layer][number], patch)
                dropped = complement.tensor(f"{name}.dropped")
                fill_dropped(dense, home, dropped, (home != new) | (home != codes))
                yield layer, number, dense, codes, new


def _at_home(packed: PackedWeights, patch: Patch) -> tuple[npt.NDArray[Any], Codes]:
    """Dense weights and codes after a patch that the packed weights themselves do not get."""
    copy = PackedWeights(packed.layout, packed.n, packed.k, packed.data.copy())
    apply_patch(patch, copy)
    dense, codes = unpack(copy)
    assert codes is not None
    return dense, codes


def fill_dropped(
    dense: npt.NDArray[Any],
    codes: Codes,
    dropped: npt.NDArray[Any],
    where: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Put the (n, k/2) values that (n, k/4) codes drop back into (n, k) masked weights.

    Args:
        where: (n, k/4), the groups to fill; all by default.

    Raises:
        EngineDirectoryError: `dropped` has another type or shape.
    """
    if dropped.shape != (dense.shape[0], dense.shape[1] // 2) or dropped.dtype != BF16:
        raise EngineDirectoryError(
            f"the complement is {dropped.dtype} {dropped.shape}, weights are {dense.shape}"
        )
    chosen = slice(None) if where is None else np.flatnonzero(where)
    groups = dense.view(np.uint16).reshape(-1, 4)
    pairs = dropped.view(np.uint16).reshape(-1, 2)[chosen]
    positions = PAIRS[5 - codes.reshape(-1)[chosen]]
    numbers = np.arange(len(groups))[chosen]
    for place in range(2):
        groups[numbers, positions[:, place]] = pairs[:, place]


def patches_of(source: DenseSource, mask: Mask) -> LayerPatches:
    """A mask as differences to the base mask."""
    patches: LayerPatches = [[None] * len(LINEARS) for _ in source.base]
    for layer, number, dense, codes, new in source.layers(mask):
        patches[layer][number] = make_patch(dense, codes, new)
    return patches


def copies_of(source: DenseSource, mask: Mask) -> LayerWeights:
    """A mask as a full set of packed weights; what it leaves alone is shared with the base."""
    copies = [list(layer) for layer in source.base]
    for layer, number, dense, _, new in source.layers(mask):
        copies[layer][number] = pack_sparse(dense, new)
    return copies


def patch_bytes(patches: LayerPatches) -> int:
    """Memory that patches take."""
    return sum(patch.nbytes for layer in patches for patch in layer if patch is not None)


def native_patches(patches: LayerPatches) -> list[list[PatchArrays | None]]:
    """Patches as the native decoder takes them."""
    return [[None if patch is None else patch.native for patch in layer] for layer in patches]
