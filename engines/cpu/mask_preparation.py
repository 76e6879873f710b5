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

    def prepare(
        self, name: str, mask: Mask, record: MaskRecord | None = None
    ) -> Callable[[], LoadedMask]:
        """Make a mask's weights; the result hands them to the native decoder.

        Args:
            record: of a mask that the directory carries.

        Raises:
            EngineDirectoryError: see `DenseSource.layers`.
        """
        assert self.rule is not None
        share = self.source.changed_share(mask)
        storage, reason = storage_of(share, record.storage if record else None, self.rule)
        info = MaskInfo(name, mask.digest, mask.domain, storage, share, reason=reason)
        _log.info("mask %s is kept as a %s: %s", name, storage, reason)
        return self._patch(info, mask) if storage == "patch" else self._copy(info, mask)

    def _patch(self, info: MaskInfo, mask: Mask) -> Callable[[], LoadedMask]:
        native, base_set = self.model.native, self.model.base_set
        patches = patches_of(self.source, mask)
        info = replace(info, resident_bytes=patch_bytes(patches))

        def add() -> LoadedMask:
            number = native.add_mask(base_set, native_patches(patches))
            return LoadedMask(number, base_set, info, patches)

        return add

    def _copy(self, info: MaskInfo, mask: Mask) -> Callable[[], LoadedMask]:
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

        return add
