"""Keeps masks in memory within a budget of bytes: the least recently used that rest leave first."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from engines.cpu.between_steps import Call, between_steps
from engines.cpu.mask_preparation import PreparedMask
from engines.cpu.masks import LoadedMask
from engines.cpu.model import CpuModel
from engines.errors import EngineDeadError, MaskError, MaskMemoryError

_log = logging.getLogger(__name__)

Prepare = Callable[[LoadedMask], Awaitable[PreparedMask]]
"""Makes a mask's weights again; while it does, nobody changes the base."""


class MaskResidency:
    """Lets masks leave memory and return. Its methods run on the event loop, except `release`.

    A mask that left keeps its name, its digest and the way in which it is kept, so its answers are
    the same bits when it returns.

    Args:
        budget: bytes of all masks beside the base; None for no limit.
        model: holds them.
        present: all masks that may be in memory, those unloaded but still in use included.
        prepare: makes one again.
        changing: held by whoever changes masks.
        default: name of the mask that the directory was built on, which stays: what others are
            made from is known by its difference to the base.
    """

    def __init__(
        self,
        budget: int | None,
        model: CpuModel,
        present: Callable[[], Iterable[LoadedMask]],
        prepare: Prepare,
        changing: asyncio.Lock,
        default: str | None,
    ) -> None:
        self.budget = budget
        self.evictions = self.restores = 0
        self._model = model
        self._present = present
        self._prepare = prepare
        self._changing = changing
        self._default = default
        self._clock = itertools.count(1)
        self._restoring: dict[LoadedMask, asyncio.Task[None]] = {}

    @property
    def used_bytes(self) -> int:
        """Memory of the masks beside the base."""
        return sum(mask.info.resident_bytes for mask in self._present() if mask.resident)

    def fits(self, size: int) -> bool:
        """Whether a mask of so many bytes has room now."""
        return self.budget is None or self.used_bytes + size <= self.budget

    def check_size(self, name: str, size: int) -> None:
        """Raise MaskError for a mask that is larger than the budget."""
        if self.budget is not None and size > self.budget:
            raise MaskError(
                f"mask {name!r} takes {size} bytes, more than all masks may (the engine option"
                f" mask_bytes, {self.budget}): raise it, or build the directory on this mask"
            )

    def touch(self, mask: LoadedMask) -> None:
        """This mask is the one that was used last."""
        mask.used = next(self._clock)

    async def ensure(self, mask: LoadedMask, call: Call) -> None:
        """Have a pinned mask in memory.

        Raises:
            MaskMemoryError: running sequences use all masks that could leave for it.
            MaskError: it is larger than the budget, or can no longer be made.
            EngineDeadError: the engine was closed, or died, meanwhile.
        """
        self.touch(mask)
        if mask.resident:
            return
        if mask not in self._restoring:
            # A task of its own: whoever waits may go, and half of the work must not be lost.
            task = asyncio.create_task(self._restore(mask, call))
            self._restoring[mask] = task
            task.add_done_callback(lambda done: self._restored(mask, done))
        task = self._restoring[mask]
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise EngineDeadError("the engine has stopped") from None
            raise

    async def make_room(self, name: str, size: int, call: Call) -> None:
        """Let masks leave until `size` bytes are free; the caller holds `changing`.

        Raises:
            MaskMemoryError, MaskError: as for `ensure`.
        """
        self.check_size(name, size)
        while not self.fits(size):
            resting = [
                mask
                for mask in self._present()
                if mask.resident
                and not mask.pins
                and mask.info.resident_bytes
                and mask.name != self._default
            ]
            if not resting:
                raise MaskMemoryError(
                    f"the memory for masks is taken by the masks of running requests"
                    f" ({self.used_bytes} of the {self.budget} bytes of mask_bytes), and"
                    f" {name!r} finds no room beside them"
                )
            await self._evict(min(resting, key=lambda mask: mask.used), call)

    async def _evict(self, mask: LoadedMask, call: Call) -> None:
        native, weights = mask.native, mask.weights
        # From here on, requests for it wait for its return.
        mask.resident, mask.patches = False, None
        self.evictions += 1
        _log.info("mask %s leaves memory (%d bytes)", mask.name, mask.info.resident_bytes)
        await between_steps(call, lambda: self.release(native, weights))

    def release(self, native: int, weights: int) -> None:
        """Give a mask's weights back; on the engine's thread."""
        self._model.native.remove_mask(native)
        if weights != self._model.base_set:
            self._model.native.remove_weights(weights)

    async def _restore(self, mask: LoadedMask, call: Call) -> None:
        async with self._changing:
            prepared = await self._prepare(mask)
            await self.make_room(mask.name, prepared.info.resident_bytes, call)
            made = await between_steps(call, prepared.add)
            if mask not in self._present():  # unloaded meanwhile, and nobody waits for it
                await between_steps(call, lambda: self.release(made.native, made.weights))
                return
            mask.native, mask.weights, mask.patches = made.native, made.weights, made.patches
            mask.info = replace(made.info, reason=mask.info.reason)
            mask.resident = True
            self.restores += 1
            _log.info("mask %s is back (%d bytes)", mask.name, mask.info.resident_bytes)

    def _restored(self, mask: LoadedMask, task: asyncio.Task[None]) -> None:
        del self._restoring[mask]
        if not task.cancelled():
            task.exception()  # whoever waited has heard of it; perhaps nobody did

    def close(self) -> None:
        """Wait for nothing any more."""
        for task in self._restoring.values():
            task.cancel()
