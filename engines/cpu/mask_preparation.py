"""Decides how a mask beside the base is kept, and makes its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from engines.base import MaskInfo
from engines.cpu.mask_weights import (
    DenseSource,
    copies_of,
    native_patches,
    patch_bytes,
    patches_of,
)
from engines.cpu.masks import LoadedMask
from engines.cpu.model import CpuModel, native_layers
from engines.cpu.storage_rule import StorageRule, storage_of
from engines.directory.manifest import MaskRecord
from maskgen.format.mask import Mask

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedMask:
    """A mask's weights, not in the native decoder yet.

    Attributes:
        info: what the engine will report.
        add: hands them over, on the engine's thread.
    """

    info: MaskInfo
    add: Callable[[], LoadedMask]


@dataclass
class MaskPreparer:
    """Makes masks ready for the native decoder.

    Attributes:
        model: holds the base mask's weights.
        source: where the weights that a mask newly keeps are read from.
        rule: decides between patch and copy; None until it has been measured.
    """

    model: CpuModel
    source: DenseSource
    rule: StorageRule | None

    def prepare(self, name: str, mask: Mask, record: MaskRecord | None = None) -> PreparedMask:
        """Make a mask's weights.

        Args:
            record: of a mask that the directory carries.

        Raises:
            EngineDirectoryError: see `DenseSource.layers`.
        """
        share = self.source.changed_share(mask)
        info = self.describe(name, mask, share, record)
        _log.info("mask %s is kept as a %s: %s", name, info.storage, info.reason)
        return self.again(info, mask)

    def describe(
        self, name: str, mask: Mask, share: float, record: MaskRecord | None = None
    ) -> MaskInfo:
        """How a mask that changes this share of the groups is kept."""
        assert self.rule is not None
        storage, reason = storage_of(share, record.storage if record else None, self.rule)
        return MaskInfo(name, mask.digest, mask.domain, storage, share, reason=reason)

    def again(self, info: MaskInfo, mask: Mask) -> PreparedMask:
        """Make a mask's weights as `info` says: the same ones as before, bit by bit.

        Raises:
            EngineDirectoryError: see `DenseSource.layers`.
        """
        return self._patch(info, mask) if info.storage == "patch" else self._copy(info, mask)

    def _patch(self, info: MaskInfo, mask: Mask) -> PreparedMask:
        native, base_set = self.model.native, self.model.base_set
        patches = patches_of(self.source, mask)
        info = replace(info, resident_bytes=patch_bytes(patches))

        def add() -> LoadedMask:
            number = native.add_mask(base_set, native_patches(patches))
            return LoadedMask(number, base_set, info, patches)

        return PreparedMask(info, add)

    def _copy(self, info: MaskInfo, mask: Mask) -> PreparedMask:
        native = self.model.native
        copies = copies_of(self.source, mask)
        own = {id(w): w.data.nbytes for layer in copies for w in layer}
        for layer in self.model.base:
            for weights in layer:
                own.pop(id(weights), None)
        info = replace(info, resident_bytes=sum(own.values()))

        def add() -> LoadedMask:
            number = native.add_weights(native_layers(copies))
            return LoadedMask(native.add_mask(number, []), number, info)

        return PreparedMask(info, add)
