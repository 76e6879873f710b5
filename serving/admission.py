"""Which requests may enter: a bounded waiting room, and nobody new while the server drains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from serving.errors import ApiError, invalid, overloaded

MAX_RETRY_AFTER = 60.0
WAIT_SMOOTHING = 0.2


class Ticket:
    """The slots of one admitted request; a choice leaves the waiting room with its first token."""

    def __init__(self, admission: Admission, choices: int) -> None:
        self._admission = admission
        self._arrived = time.monotonic()
        self._end: Callable[[ApiError], None] | None = None
        self._ended: ApiError | None = None
        self.waiting = choices

    def on_end(self, callback: Callable[[ApiError], None]) -> None:
        """What to do when the request must end; at once, if that was said already."""
        self._end = callback
        if self._ended is not None:
            callback(self._ended)

    def end(self, error: ApiError) -> None:
        """The request must end, its client is to get `error`."""
        self._ended = error
        if self._end is not None:
            self._end(error)

    def started(self) -> None:
        """One choice has its first token."""
        if self.waiting:
            self.waiting -= 1
            self._admission._left(1, time.monotonic() - self._arrived)

    def release(self) -> None:
        """The request has ended, however it ended. Safe to call twice."""
        self._admission._left(self.waiting, None)
        self.waiting = 0
        self._admission._forget(self)


class Admission:
    """Counts what waits for its first token, and refuses more than `max_waiting` of it.

    A slot is taken in the same event-loop turn that checks for it, so that requests arriving
    together cannot all pass.
    """

    def __init__(self, max_waiting: int, max_choices: int) -> None:
        self._max_waiting = max_waiting
        self._max_choices = max_choices
        self._tickets: set[Ticket] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._mean_wait = 1.0
        self.waiting = 0
        self.draining = False

    @property
    def in_flight(self) -> int:
        """Requests that were admitted and have not ended."""
        return len(self._tickets)

    @property
    def retry_after(self) -> float:
        """Seconds after which trying again makes sense: the usual wait for a first token."""
        return min(self._mean_wait, MAX_RETRY_AFTER)

    def admit(self, choices: int, param: str) -> Ticket:
        """Slots for a request of so many choices.

        Raises:
            ApiError: see `check`.
        """
        self.check(choices, param)
        self.waiting += choices
        ticket = Ticket(self, choices)
        self._tickets.add(ticket)
        self._idle.clear()
        return ticket

    def check(self, choices: int, param: str) -> None:
        """Refuse a request that would get no slots now.

        Raises:
            ApiError: 400 if the request alone is too large, 429 if too many wait, 503 while the
                server shuts down.
        """
        self.check_open()
        if choices > self._max_choices:
            raise invalid(
                f"n times the number of prompts is {choices}, above this server's limit of"
                f" {self._max_choices}",
                param,
            )
        if self.waiting + choices > self._max_waiting:
            raise overloaded(self.retry_after)

    def check_open(self) -> None:
        """Raise a 503 while the server shuts down."""
        if self.draining:
            raise shutting_down()

    async def drain(self, timeout: float) -> int:
        """Admit nobody, let what runs finish, and end the rest after `timeout` seconds.

        Returns:
            How many requests had to be ended.
        """
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            pass
        else:
            return 0
        rest = list(self._tickets)
        for ticket in rest:
            ticket.end(shutting_down())
        return len(rest)

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def _left(self, choices: int, waited: float | None) -> None:
        self.waiting -= choices
        if waited is not None:
            self._mean_wait += WAIT_SMOOTHING * (waited - self._mean_wait)

    def _forget(self, ticket: Ticket) -> None:
        self._tickets.discard(ticket)
        if not self._tickets:
            self._idle.set()


def shutting_down() -> ApiError:
    """A 503 that sends the client to another server."""
    return ApiError(
        503,
        "the server is shutting down",
        code="shutting_down",
        headers={"retry-after": "1", "connection": "close"},
    )
