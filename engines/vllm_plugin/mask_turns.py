"""Whose turn it is: vLLM runs one mask at a time, so requests for another wait until it drained."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Switch = Callable[[str], Awaitable[None]]


class MaskGate:
    """Lets requests in by mask; never two masks at once.

    While nobody waits for another mask, requests for the active one enter at once. When somebody
    does, newcomers queue behind, the running requests drain, and then all that wait for the mask of
    the longest waiting request enter together: no mask starves, and each switch serves as many
    requests as are there.

    Args:
        active: the mask that is active at first; None is the dense model.
        switch: makes another mask active; called while no request is inside.
    """

    def __init__(self, active: str | None, switch: Switch) -> None:
        self.active = active
        self.switches = 0
        self._switch = switch
        self._inside = 0
        self._waiting: deque[tuple[str | None, asyncio.Future[None]]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> Counter[str | None]:
        """How many requests wait, by mask."""
        return Counter(mask for mask, future in self._waiting if not future.done())

    @asynccontextmanager
    async def enter(self, mask: str | None) -> AsyncIterator[None]:
        """Hold `mask` active for the time of the block.

        Raises:
            Exception: what `switch` raised, in every request that waited for that mask.
        """
        if mask != self.active or self._waiting or self._task is not None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((mask, future))
            self._advance()
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._leave()  # let in and cancelled in the same turn of the loop
                else:
                    self._waiting = deque(w for w in self._waiting if w[1] is not future)
                    self._advance()
                raise
        else:
            self._inside += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        self._advance()

    def _advance(self) -> None:
        """Start the next turn once nobody is inside."""
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()
        if self._inside == 0 and self._waiting and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._turn(self._waiting[0][0]))

    async def _turn(self, mask: str | None) -> None:
        error: Exception | None = None
        if mask != self.active and mask is not None:
            try:
                await self._switch(mask)
                self.active = mask
                self.switches += 1
            except Exception as failure:
                error = failure
        let_in = [future for name, future in self._waiting if name == mask and not future.done()]
        self._waiting = deque(w for w in self._waiting if w[0] != mask and not w[1].done())
        for future in let_in:
            if error is None:
                self._inside += 1
                future.set_result(None)
            else:
                future.set_exception(error)
        self._task = None
        self._advance()
