"""Makes a mask that is kept as a patch the base, by patching the packed weights in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engines.cpu.mask_weights import LayerPatches, LayerWeights, native_patches, patch_bytes
from engines.cpu.masks import LoadedMask
from engines.cpu.model import CpuModel
from engines.errors import PatchError
from engines.native.patch import AnyPatch, apply_patch, inverse, rebase, revert_patch


class BaseSwitch:
    """One switch, worked out when it is made; `carry_out` does what must wait for a step's end.

    Args:
        model: holds the packed weights.
        old: the mask that they hold.
        new: the mask that they shall hold; kept as a patch.
        others: all further masks of this base; kept as patches.
        group: weights in a group of their pattern.
    """

    def __init__(
        self,
        model: CpuModel,
        old: LoadedMask,
        new: LoadedMask,
        others: Sequence[LoadedMask],
        group: int,
    ) -> None:
        assert new.patches is not None
        self._model = model
        self._group = group
        self._new = new
        self._difference = new.patches
        nothing: LayerPatches = [[None] * len(layer) for layer in new.patches]
        self._patches = {
            mask: _rebased(mask.patches or nothing, new.patches) for mask in (old, *others)
        }

    def carry_out(self) -> None:
        """Patch the weights and register all masks anew; on the engine's thread.

        Raises:
            PatchError: the weights do not hold the old mask; nothing was changed.
        """
        model, native = self._model, self._model.native
        patch_weights(self._difference, model.base, threads=model.limits.threads)
        native.remove_mask(self._new.native)
        self._new.native, self._new.patches = model.base_mask, None
        self._describe(self._new, None)
        for mask, patches in self._patches.items():
            if mask.native != model.base_mask:
                native.remove_mask(mask.native)
            mask.native = native.add_mask(model.base_set, native_patches(patches))
            mask.patches = patches
            self._describe(mask, patches)

    def _describe(self, mask: LoadedMask, patches: LayerPatches | None) -> None:
        if patches is None:
            mask.info = replace(
                mask.info, storage="base", changed_share=0.0, resident_bytes=0, reason=""
            )
            return
        changed = sum(
            p.changed_groups(self._group) for layer in patches for p in layer if p is not None
        )
        mask.info = replace(
            mask.info,
            storage="patch",
            changed_share=changed / (_weights(self._model.base) // self._group),
            resident_bytes=patch_bytes(patches),
            reason=f"the base was switched to {self._new.name}",
        )


def patch_weights(patches: LayerPatches, weights: LayerWeights, *, threads: int = 0) -> None:
    """Change packed weights, in place, to another mask's: all layers or none.

    Raises:
        PatchError: a layer does not hold the mask that the patches start from.
    """
    pairs = [
        (patch, packed)
        for row, layer in zip(patches, weights, strict=True)
        for patch, packed in zip(row, layer, strict=True)
        if patch is not None
    ]
    for done, (patch, packed) in enumerate(pairs):
        try:
            apply_patch(patch, packed, threads=threads)
        except PatchError:
            for patch, packed in pairs[:done]:
                revert_patch(patch, packed, threads=threads)
            raise


def _rebased(patches: LayerPatches, base: LayerPatches) -> LayerPatches:
    return [
        [_rebased_layer(*pair) for pair in zip(*layers, strict=True)]
        for layers in zip(patches, base, strict=True)
    ]


def _rebased_layer(patch: AnyPatch | None, base: AnyPatch | None) -> AnyPatch | None:
    if base is None:
        return patch
    changed = inverse(base) if patch is None else rebase(patch, base)
    return changed if changed.row_start[-1] else None


def _weights(weights: LayerWeights) -> int:
    return sum(w.n * w.k for layer in weights for w in layer if w.layout.sparse)
