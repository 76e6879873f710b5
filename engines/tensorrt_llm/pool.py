"""Which engines are in memory: loaded on demand, the least recently used unloaded for room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.llm_api import Llm


@dataclass
class _Resident:
    llm: Llm
    users: int = 0


class EnginePool:
    """Keeps the loaded engines within a memory budget.

    An engine in use is never unloaded. A request for one that does not fit waits until enough
    others are idle; requests that come after it wait behind it, so that it cannot starve.

    Args:
        load: puts an engine into memory; blocks, and is called in a thread.
        sizes: engine -> bytes that it takes, KV cache included.
        budget: most bytes of all engines together; None is no limit.

    Raises:
        EngineDirectoryError: an engine alone is larger than the budget.
    """

    def __init__(
        self, load: Callable[[str], Llm], sizes: Mapping[str, int], budget: int | None
    ) -> None:
        self._load = load
        self._sizes = dict(sizes)
        self._budget = budget
        for name in sizes:
            self._check_size(name)
        self._resident: OrderedDict[str, _Resident] = OrderedDict()
        self._admission = asyncio.Lock()
        self._idle = asyncio.Condition()
        self._waiting: list[str] = []
        self._retired: set[str] = set()
        self._releases: set[asyncio.Task[None]] = set()
        self._loads = 0

    @property
    def resident(self) -> tuple[str, ...]:
        """Loaded engines, the least recently used first."""
        return tuple(self._resident)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Engines that requests wait for, once per request."""
        return tuple(self._waiting)

    @property
    def loads(self) -> int:
        """Engines loaded so far."""
        return self._loads

    def users(self, name: str) -> int:
        """Sequences that run on an engine."""
        return self._resident[name].users if name in self._resident else 0

    def add(self, name: str, size: int) -> None:
        """Announce an engine that was built after the pool, or take back its retirement.

        Raises:
            EngineDirectoryError: it alone is larger than the budget.
        """
        self._sizes[name] = size
        self._check_size(name)
        self._retired.discard(name)

    def preload(self, name: str) -> None:
        """Load an engine at once, blocking; for the time before any request."""
        self._enter(name, self._load(name))

    async def acquire(self, name: str) -> Llm:
        """The engine, loaded, and kept until `release`."""
        # A load cannot be interrupted, so a caller that gives up leaves it running and idle.
        admission = asyncio.ensure_future(self._admit(name))
        self._waiting.append(name)
        try:
            return await asyncio.shield(admission)
        except asyncio.CancelledError:
            admission.add_done_callback(lambda done: self._drop(name, done))
            raise
        finally:
            self._waiting.remove(name)

    async def release(self, name: str) -> None:
        """Give up what `acquire` returned."""
        self._resident[name].users -= 1
        async with self._idle:
            self._idle.notify_all()
        if name in self._retired:
            await self._unload_retired(name)

    async def retire(self, name: str) -> None:
        """Unload an engine, at once or when the last sequence on it has finished."""
        self._retired.add(name)
        await self._unload_retired(name)

    async def close(self) -> None:
        """Unload everything, running or not."""
        for name in list(self._resident):
            await self._evict(name)

    def _check_size(self, name: str) -> None:
        if self._budget is not None and self._sizes[name] > self._budget:
            raise EngineDirectoryError(
                f"engine {name!r} takes {self._sizes[name] / 2**30:.1f} GiB with its KV cache, more"
                f" than memory_gib allows ({self._budget / 2**30:.1f}); raise it or lower kv_gib"
            )

    async def _admit(self, name: str) -> Llm:
        async with self._admission:
            if name not in self._resident:
                await self._make_room(name)
                self._enter(name, await asyncio.to_thread(self._load, name))
            resident = self._resident[name]
            self._resident.move_to_end(name)
            resident.users += 1
            return resident.llm

    def _enter(self, name: str, llm: Llm) -> None:
        self._resident[name] = _Resident(llm)
        self._loads += 1

    async def _make_room(self, name: str) -> None:
        while not self._fits(name):
            await self._until(lambda: any(not r.users for r in self._resident.values()))
            idle = next(other for other, r in self._resident.items() if not r.users)
            await self._evict(idle)

    def _fits(self, name: str) -> bool:
        if self._budget is None:
            return True
        held = sum(self._sizes[other] for other in self._resident)
        return held + self._sizes[name] <= self._budget

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._idle:
            await self._idle.wait_for(condition)

    async def _evict(self, name: str) -> None:
        resident = self._resident.pop(name, None)
        if resident is not None:
            await asyncio.to_thread(resident.llm.shutdown)

    async def _unload_retired(self, name: str) -> None:
        async with self._admission:
            if name in self._retired and not self.users(name):
                await self._evict(name)

    def _drop(self, name: str, admission: asyncio.Future[Llm]) -> None:
        if admission.cancelled() or admission.exception() is not None:
            return
        release = asyncio.ensure_future(self.release(name))
        self._releases.add(release)
        release.add_done_callback(self._releases.discard)
