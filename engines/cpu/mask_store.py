"""Loads and unloads masks while the engine runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from engines.base import MaskInfo
from engines.cpu.base_switch import BaseSwitch
from engines.cpu.between_steps import Call, between_steps
from engines.cpu.dense_arm import add_dense_arm
from engines.cpu.loaded_weights import LoadedTensors
from engines.cpu.mask_preparation import MaskPreparer, PreparedMask
from engines.cpu.mask_residency import MaskResidency
from engines.cpu.mask_weights import DenseSource
from engines.cpu.masks import DenseModel, LoadedMask, Variant
from engines.cpu.model import CpuModel
from engines.cpu.options import CpuOptions
from engines.cpu.storage_measurement import measured_rule
from engines.cpu.storage_rule import chosen_rule
from engines.directory.manifest import Manifest, MaskRecord
from engines.directory.opening import read_own_mask
from engines.directory.tensor_file import TensorFile
from engines.directory.tied_file import TiedFile
from engines.errors import EngineDirectoryError, EngineOverloadedError, MaskError
from engines.mask_rules import (
    DENSE,
    MaskedLayers,
    check_load,
    check_requested,
    check_unload,
    read_fitting,
)
from maskgen.format.mask import Mask
from maskgen.format.pattern import TWO_FOUR


class MaskStore:
    """The masks of one engine. Its methods run on the event loop, except `free`.

    Args:
        directory: the engine directory.
        manifest: its manifest; all its masks are loaded.
        model: the loaded weights.
        options: `mask_bytes`, `mask_storage` and `patch_limit` count here.
        complement: what the base mask drops.
        dense: the dense model's weights, where the directory holds them beside masks.

    Raises:
        EngineDirectoryError: the directory lacks what a mask needs, or a mask is malformed or not
            the one that the manifest names.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        model: CpuModel,
        options: CpuOptions,
        complement: TiedFile,
        dense: LoadedTensors | TensorFile | None = None,
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._default = manifest.default_mask
        self._model = model
        self._changing = asyncio.Lock()  # who packs weights or changes the base
        self._source = DenseSource(complement, model.config, model.base)
        rule = chosen_rule(options.mask_storage, options.patch_limit)
        self._preparer = MaskPreparer(model, self._source, rule)
        self._masks: dict[str, LoadedMask] = {}
        self._loading: set[str] = set()
        self._retired: list[LoadedMask] = []
        self._shapes: dict[str, tuple[int, int]] = {}  # of the layers that masks list
        self._pattern = TWO_FOUR  # of all masks
        self._placed: LoadedMask | None = None  # the mask that the packed weights hold
        self._switching = False
        self._dense = self._dense_model(dense)
        self.residency = MaskResidency(
            options.mask_bytes,
            model,
            self._present,
            self._make_again,
            self._changing,
            self._default,
        )
        if len(manifest.masks) > 1 and self._preparer.rule is None:
            self._preparer.rule = measured_rule(model)
        for record in sorted(manifest.masks, key=lambda record: record.name != self._default):
            mask = read_own_mask(directory, manifest, record)
            if record.name == self._default:
                self._shapes, self._pattern = mask.shapes, mask.pattern
                self._add_base(record.name, mask)
            elif mask.shapes != self._shapes:
                raise EngineDirectoryError(
                    f"{directory / record.file} lists other layers than the default mask"
                )
            else:
                self._masks[record.name] = self._first(record, mask)
        self._masks = {record.name: self._masks[record.name] for record in manifest.masks}

    def _dense_model(self, weights: LoadedTensors | TensorFile | None) -> DenseModel | None:
        if self._default is None:
            return DenseModel(self._model.base_mask, self._model.base_set)
        return None if weights is None else add_dense_arm(self._model, weights)

    @property
    def dense_bytes(self) -> int | None:
        """Memory of the dense model beside the masks; None where there is none."""
        return self._dense.resident_bytes if self._dense and self._default is not None else None

    @property
    def eligible_layers(self) -> int:
        """Linear layers that the masks list."""
        return len(self._shapes)

    def infos(self) -> tuple[MaskInfo, ...]:
        """What is loaded, with the current pins."""
        return tuple(
            replace(
                mask.info,
                pinned=mask.pins,
                numerics=self._numerics(mask.info),
                resident=mask.resident,
                resident_bytes=mask.info.resident_bytes if mask.resident else 0,
            )
            for mask in self._masks.values()
        )

    def _numerics(self, info: MaskInfo) -> str:
        # A patch's part is added last, and which part that is depends on the base.
        if info.storage != "patch" or self._placed is None:
            return ""
        return f"patch of {self._placed.digest}"

    def resident_bytes(self) -> int:
        """Memory beside the base: that of masks, those still pinned included, and dense weights."""
        return self.residency.used_bytes + (self.dense_bytes or 0)

    def _present(self) -> list[LoadedMask]:
        return [*self._masks.values(), *self._retired]

    def resolve(self, name: str | None) -> Variant:
        """What a request names: a mask, `dense`, or the default.

        Raises:
            UnknownMaskError: it is not loaded.
        """
        wanted = DENSE if name is None and self._default is None else name or self._default
        if wanted == DENSE and self._dense is not None:
            return self._dense
        return self._named(str(wanted))

    def _named(self, name: str) -> LoadedMask:
        check_requested(name, self._masks)
        return self._masks[name]

    async def load(self, name: str, path: Path, call: Call) -> MaskInfo:
        """Load a mask file; `call` runs what touches the native decoder on the engine's thread.

        Raises:
            MaskError: see `engines.base.Engine.load_mask`.
        """
        check_load(
            name, {*self._masks, *self._loading}, self._manifest.default_mask, self._manifest.sealed
        )
        self._loading.add(name)
        try:
            async with self._changing:
                layers = MaskedLayers(self._pattern, self._shapes)
                digest = self._manifest.base_digest
                mask = await asyncio.to_thread(
                    read_fitting, name, path, "cpu", digest, layers, self._manifest.values
                )
                if self._preparer.rule is None:
                    rule = await between_steps(call, lambda: measured_rule(self._model))
                    self._preparer.rule = rule
                # Packing runs off the event loop; only handing it over happens between two steps.
                prepared = await asyncio.to_thread(self._prepare, name, mask)
                await self.residency.make_room(name, prepared.info.resident_bytes, call)
                loaded = await between_steps(call, prepared.add)
                loaded.file = path.absolute()
                self.residency.touch(loaded)
                self._masks[name] = loaded
        finally:
            self._loading.discard(name)
        return loaded.info

    async def switch_base(self, name: str, call: Call, forget: Callable[[], None]) -> MaskInfo:
        """Let a mask's weights take the base mask's place.

        Args:
            call: as for `load`.
            forget: empties the prefix cache, on the engine's thread: its entries are what masks
                gave as base or as patch, and differ in the last bits from what they give now.

        Raises:
            UnknownMaskError, MaskError: see `engines.cpu.engine.CpuEngine.switch_base`.
        """
        new = self._named(name)
        new.pins += 1  # so that it stays
        try:
            await self.residency.ensure(new, call)
        finally:
            new.pins -= 1
        async with self._changing:
            new = self._switchable(name)
            self._switching = True
            try:
                if new is not self._placed:
                    await self._switch(new, call, forget)
            finally:
                self._switching = False
            # The old base has become a patch; requests may use what would have to leave.
            with contextlib.suppress(EngineOverloadedError):
                await self.residency.make_room(name, 0, call)
        return new.info

    async def _switch(self, new: LoadedMask, call: Call, forget: Callable[[], None]) -> None:
        old = self._placed
        assert old is not None
        assert self._default is not None
        # Those that were unloaded go before the switch is carried out: nothing pins them.
        others = [m for m in self._masks.values() if m.resident and m not in (old, new)]
        switch = await asyncio.to_thread(BaseSwitch, self._model, old, new, others, self._pattern.m)
        self._switchable(new.name)  # requests may have come meanwhile

        def carry_out() -> None:
            switch.carry_out()
            forget()

        # Requests that come from here on reach the engine's thread after the switch.
        await between_steps(call, carry_out)
        self._placed = new
        self._source.home = self._masks[self._default].patches

    def unload(self, name: str) -> LoadedMask:
        """Stop offering a mask; `free` it once nothing pins it.

        Raises:
            UnknownMaskError: no such mask.
            MaskError: it is the default mask.
        """
        check_unload(name, self._masks, self._default)
        if self._switching:
            raise MaskError(f"{name!r} cannot be unloaded while the base is being switched")
        if self._masks[name] is self._placed:
            raise MaskError(f"{name!r} is the base; switch the base to another mask first")
        mask = self._masks.pop(name)
        mask.unloaded = True
        self._retired.append(mask)
        return mask

    def free(self, mask: LoadedMask) -> None:
        """Give the weights of an unloaded mask back; on the engine's thread."""
        if mask not in self._retired:
            return
        self._retired.remove(mask)
        if mask.resident:
            self.residency.release(mask.native, mask.weights)

    def _first(self, record: MaskRecord, mask: Mask) -> LoadedMask:
        """A mask that the directory carries, in memory if it finds room there."""
        file = self._directory / record.file
        if self.residency.fits(1):
            prepared = self._preparer.prepare(record.name, mask, record)
            self.residency.check_size(record.name, prepared.info.resident_bytes)
            if self.residency.fits(prepared.info.resident_bytes):
                loaded = prepared.add()
                loaded.file = file
                return loaded
        info = self._preparer.describe(record.name, mask, record.changed_share, record)
        return LoadedMask(-1, -1, info, file=file, resident=False)

    async def _make_again(self, mask: LoadedMask) -> PreparedMask:
        """The weights of a mask that left memory.

        Raises:
            MaskError: its file is no longer what it was.
        """
        name, layers = mask.name, MaskedLayers(self._pattern, self._shapes)
        found = await asyncio.to_thread(
            read_fitting,
            *(name, mask.file, "cpu", self._manifest.base_digest, layers, self._manifest.values),
        )
        if found.digest != mask.digest:
            raise MaskError(
                f"mask {name!r} left memory, and its file holds another mask now: unload it, and"
                " load it again"
            )
        prepare = partial(self._preparer.again, mask.info, found)
        return await asyncio.to_thread(self._told, name, prepare)

    def _prepare(self, name: str, mask: Mask) -> PreparedMask:
        return self._told(name, lambda: self._preparer.prepare(name, mask))

    def _told(self, name: str, prepare: Callable[[], PreparedMask]) -> PreparedMask:
        try:
            return prepare()
        except EngineDirectoryError as error:
            # Whoever loads a mask over HTTP need not know where the directory lies.
            told = str(error).replace(f"{self._directory}/", "")
            raise MaskError(f"mask {name!r} cannot be loaded: {told}") from error

    def _add_base(self, name: str, mask: Mask) -> None:
        info = MaskInfo(name, mask.digest, mask.domain, "base")
        model = self._model
        sparse = {
            model.config.module(layer, linear): (weights.n, weights.k // mask.pattern.m)
            for layer, row in enumerate(model.base)
            for linear, weights in zip(model.config.linears(layer), row, strict=True)
            if weights.layout.sparse
        }
        listed = {name: codes.shape for name, codes in model.config.codes_of_parts(mask).items()}
        if listed != sparse:
            odd = min(listed.items() ^ sparse.items())[0]
            raise EngineDirectoryError(
                f"the default mask and the packed weights disagree about {odd}: build the directory"
                " again"
            )
        self._placed = LoadedMask(model.base_mask, model.base_set, info)
        self._masks[name] = self._placed

    def _switchable(self, name: str) -> LoadedMask:
        new = self._named(name)
        pinned = [m for m in (*self._masks.values(), *self._retired) if m.pins]
        if pinned:
            users = ", ".join(f"{mask.name!r} by {mask.pins}" for mask in pinned)
            raise MaskError(
                f"the base cannot be switched while sequences use masks ({users}):"
                " wait until they have finished"
            )
        copies = [m.name for m in self._masks.values() if m.info.storage == "copy"]
        if copies:
            raise MaskError(
                f"the base cannot be switched beside masks that are kept as copies"
                f" ({', '.join(copies)}): unload them, or start the engine with mask_storage=patch"
            )
        return new
