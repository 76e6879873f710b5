"""Loads and unloads masks while the engine runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from engines.base import MaskInfo
from engines.build import changed_share
from engines.cpu.mask_weights import DenseSource, copies_of, patch_bytes, patches_of
from engines.cpu.masks import LoadedMask
from engines.cpu.model import CpuModel, native_layers
from engines.errors import MaskError, UnknownMaskError
from engines.manifest import COMPLEMENT_FILE, NAME_PATTERN, Manifest
from maskgen.maskfile import Mask, MaskFileError, read_mask

PATCH_LIMIT = 0.01
"""Share of changed groups above which a mask is kept as a full copy.

About where a decode step of four sequences with the base mask and four with another costs the same
either way (SmolLM2-135M, AVX-512-BF16). A patch takes less memory far beyond: up to 35 %.
"""

Storage = Literal["patch", "copy"]


class MaskStore:
    """The masks of one engine. Its methods run on the event loop, except `free`.

    Args:
        directory: the engine directory.
        manifest: its manifest; all its masks are loaded.
        model: the loaded weights.
        storage: how to keep masks beside the base; None chooses by `PATCH_LIMIT`.

    Raises:
        EngineDirectoryError: the directory lacks what a mask needs.
        MaskFileError: a mask file is malformed.
        MaskError: a mask is not the one that the manifest names.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        model: CpuModel,
        storage: Storage | None = None,
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._model = model
        self._storage = storage
        self._source = DenseSource(directory, model.config, model.base)
        self._masks: dict[str, LoadedMask] = {}
        self._loading: set[str] = set()
        self._retired: list[LoadedMask] = []
        self._base: Mask | None = None
        self._dense = LoadedMask("", "", model.base_mask, model.base_set, None)
        for record in manifest.masks:
            mask = read_mask(directory / record.file)
            if mask.digest != record.digest:
                raise MaskError(f"{record.file} holds another mask than engine.json names")
            if record.name == manifest.default_mask:
                self._base = mask
        for record in manifest.masks:
            if record.name == manifest.default_mask:
                self._add_base(record.name)
            else:
                mask = read_mask(directory / record.file)
                self._masks[record.name] = self._install(record.name, mask)

    @property
    def eligible_layers(self) -> int:
        """Linear layers that the masks list."""
        return 0 if self._base is None else len(self._base.codes)

    def infos(self) -> tuple[MaskInfo, ...]:
        """What is loaded, with the current pins."""
        return tuple(
            replace(mask.info, pinned=mask.pins)
            for mask in self._masks.values()
            if mask.info is not None
        )

    def resident_bytes(self) -> int:
        """Memory that the masks beside the base take, those still pinned included."""
        loaded = [*self._masks.values(), *self._retired]
        return sum(mask.info.resident_bytes for mask in loaded if mask.info is not None)

    def resolve(self, name: str | None) -> LoadedMask:
        """The mask that a request names, or the default.

        Raises:
            UnknownMaskError: it is not loaded.
        """
        if name is None:
            default = self._manifest.default_mask
            return self._dense if default is None else self._masks[default]
        try:
            return self._masks[name]
        except KeyError:
            raise UnknownMaskError(f"no mask named {name!r} is loaded", param="model") from None

    async def load(
        self, name: str, path: Path, call: Callable[[Callable[[], None]], None]
    ) -> MaskInfo:
        """Load a mask file; `call` runs what touches the native decoder on the engine's thread.

        Raises:
            MaskError: see `engines.base.Engine.load_mask`.
        """
        if not re.fullmatch(NAME_PATTERN, name):
            raise MaskError(f"mask name {name!r} is not letters, digits, '.', '_' or '-'")
        if name in self._masks or name in self._loading:
            raise MaskError(f"a mask named {name!r} is loaded already")
        if self._base is None:
            raise MaskError("this engine is dense: it was built without a mask")
        if not (self._directory / COMPLEMENT_FILE).is_file():
            raise MaskError(
                "this engine directory is sealed: the weights that its mask drops were left out,"
                " so no mask can be added; build it without --sealed"
            )
        self._loading.add(name)
        try:
            mask = await asyncio.to_thread(self._read, name, path)
            # Packing runs off the event loop; only handing it over happens between two steps.
            prepared = await asyncio.to_thread(self._prepare, name, mask)
            done = asyncio.get_running_loop().create_future()
            events = asyncio.get_running_loop()

            def hand_over() -> None:
                try:
                    loaded = prepared()
                except Exception as error:
                    events.call_soon_threadsafe(done.set_exception, error)
                else:
                    events.call_soon_threadsafe(done.set_result, loaded)

            call(hand_over)
            loaded: LoadedMask = await done
        finally:
            self._loading.discard(name)
        self._masks[name] = loaded
        assert loaded.info is not None
        return loaded.info

    def unload(self, name: str) -> LoadedMask:
        """Stop offering a mask; `free` it once nothing pins it.

        Raises:
            UnknownMaskError: no such mask.
            MaskError: it is the default mask.
        """
        if name not in self._masks:
            raise UnknownMaskError(f"no mask named {name!r} is loaded", param="name")
        if name == self._manifest.default_mask:
            raise MaskError(f"{name!r} is the default mask and cannot be unloaded")
        mask = self._masks.pop(name)
        mask.unloaded = True
        self._retired.append(mask)
        return mask

    def free(self, mask: LoadedMask) -> None:
        """Give the weights of an unloaded mask back; on the engine's thread."""
        if mask not in self._retired:
            return
        self._retired.remove(mask)
        self._model.native.remove_mask(mask.native)
        if mask.weights != self._model.base_set:
            self._model.native.remove_weights(mask.weights)

    def _read(self, name: str, path: Path) -> Mask:
        try:
            mask = read_mask(path)
        except (MaskFileError, OSError) as error:
            raise MaskError(str(error)) from error
        assert self._base is not None
        if mask.base_digest != self._manifest.base_digest:
            raise MaskError(
                f"mask {name!r} was made for the model with base digest"
                f" {mask.base_digest[:12]}..., this engine's is"
                f" {self._manifest.base_digest[:12]}..."
            )
        if mask.shapes != self._base.shapes:
            raise MaskError(f"mask {name!r} lists other layers than the engine's default mask")
        return mask

    def _add_base(self, name: str) -> None:
        assert self._base is not None
        info = MaskInfo(name, self._base.digest, self._base.domain, "base")
        model = self._model
        self._masks[name] = LoadedMask(
            name, self._base.digest, model.base_mask, model.base_set, info
        )

    def _install(self, name: str, mask: Mask) -> LoadedMask:
        return self._prepare(name, mask)()

    def _prepare(self, name: str, mask: Mask) -> Callable[[], LoadedMask]:
        """Make a mask's weights; the result hands them to the native decoder."""
        assert self._base is not None
        native, base_set = self._model.native, self._model.base_set
        share = changed_share(mask, self._base)
        storage = self._storage or ("patch" if share <= PATCH_LIMIT else "copy")
        info = MaskInfo(name, mask.digest, mask.domain, storage, share)
        if storage == "patch":
            patches = patches_of(self._source, mask)
            info = replace(info, resident_bytes=patch_bytes(patches))

            def add_patch() -> LoadedMask:
                return LoadedMask(
                    name, mask.digest, native.add_mask(base_set, patches), base_set, info
                )

            return add_patch
        copies = copies_of(self._source, mask)
        own = {id(w): w.data.nbytes for layer in copies for w in layer}
        for layer in self._model.base:
            for weights in layer:
                own.pop(id(weights), None)
        info = replace(info, resident_bytes=sum(own.values()))

        def add_copy() -> LoadedMask:
            weights = native.add_weights(native_layers(copies))
            return LoadedMask(name, mask.digest, native.add_mask(weights, []), weights, info)

        return add_copy
