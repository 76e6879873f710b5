"""Weights of a further mask: as a difference to the base mask's, or as a full packed set.

Both come from the base mask's packed layers and `complement.safetensors`, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from engines.cpu.matrix import Kept, Matrix, changed_groups, kept_of, unpack_matrix
from engines.directory.decoder_config import DecoderConfig
from engines.directory.tied_file import TiedFile
from engines.errors import EngineDirectoryError
from engines.native._native import LowbitPatchArrays, PatchArrays
from engines.native.layout import PackedWeights
from engines.native.patch import AnyPatch, apply_patch
from maskgen.format.mask import Mask

LayerPatches = list[list[AnyPatch | None]]
"""By layer and linear, in the order of `DecoderConfig.linears`; None where the masks agree."""

LayerWeights = list[list[PackedWeights]]
"""By layer and linear, in the order of `DecoderConfig.linears`."""


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

        What the base keeps is read from the packed weights: beside them, a byte a group, it would
        take another 44 % of the memory of sparse layers of bf16.
        """
        changed, weights = 0, 0
        codes = self.config.codes_of_parts(mask)
        for layer, row in enumerate(self.base):
            for linear, packed in zip(self.config.linears(layer), row, strict=True):
                name = self.config.module(layer, linear)
                if name in codes:
                    kept = unpack_matrix(packed)[1]
                    assert kept is not None
                    new = kept_of(codes[name], mask.pattern, packed.layout)
                    changed += changed_groups(kept, new, mask.pattern.m)
                    weights += packed.n * packed.k
        return changed / (weights // mask.pattern.m)

    def layers(self, mask: Mask) -> Iterator[tuple[int, int, Matrix, Kept, Kept]]:
        """(layer, linear, matrix, what the base keeps, what `mask` keeps) where the two differ.

        The matrix holds what either mask keeps, and not all of the rest.

        Raises:
            EngineDirectoryError: the complement is missing, of another shape, or no longer that of
                the base; what was yielded before must not be used then.
        """
        codes = self.config.codes_of_parts(mask)
        with self.complement.reading() as complement:
            for layer, number, linear in self._linears():
                name = self.config.module(layer, linear)
                if name not in codes:
                    continue
                packed = self.base[layer][number]
                matrix, kept = unpack_matrix(packed)
                if kept is None:
                    raise EngineDirectoryError(f"{name} is dense in this engine")
                new = kept_of(codes[name], mask.pattern, packed.layout)
                if np.array_equal(kept, new):
                    continue
                home = kept
                if self.home is not None and (patch := self.home[layer][number]) is not None:
                    matrix, home = _at_home(packed, patch)
                matrix.put_back(home, complement.tensor(f"{name}.dropped"), new, kept)
                yield layer, number, matrix, kept, new

    def _linears(self) -> Iterator[tuple[int, int, str]]:
        """(layer, number in it, linear) of every linear layer."""
        for layer in range(self.config.layers):
            for number, linear in enumerate(self.config.linears(layer)):
                yield layer, number, linear


def _at_home(packed: PackedWeights, patch: AnyPatch) -> tuple[Matrix, Kept]:
    """A layer and what it keeps after a patch that the packed weights themselves do not get."""
    copy = replace(packed, data=packed.data.copy())
    apply_patch(patch, copy)
    matrix, kept = unpack_matrix(copy)
    assert kept is not None
    return matrix, kept


def patches_of(source: DenseSource, mask: Mask) -> LayerPatches:
    """A mask as differences to the base mask."""
    patches: LayerPatches = [[None] * len(row) for row in source.base]
    for layer, number, matrix, kept, new in source.layers(mask):
        patches[layer][number] = matrix.patch(kept, new)
    return patches


def copies_of(source: DenseSource, mask: Mask) -> LayerWeights:
    """A mask as a full set of packed weights; what it leaves alone is shared with the base."""
    copies = [list(layer) for layer in source.base]
    for layer, number, matrix, _, new in source.layers(mask):
        copies[layer][number] = matrix.pack(new)
    return copies


def patch_bytes(patches: LayerPatches) -> int:
    """Memory that patches take."""
    return sum(patch.nbytes for layer in patches for patch in layer if patch is not None)


def native_patches(
    patches: LayerPatches,
) -> list[list[PatchArrays | LowbitPatchArrays | None]]:
    """Patches as the native decoder takes them."""
    return [[None if patch is None else patch.native for patch in layer] for layer in patches]
