"""Hands out request numbers, warm-up first, and knows when a run has had enough."""

from __future__ import annotations

import threading
import time


class RequestBudget:
    """Numbers for the requests of a run.

    Requests 0 to `warmup` - 1 are warm-up. No measured request starts before the last of them has
    ended, so none shares the server with a cold one. Safe for threads and, under gevent's patched
    `threading`, for greenlets.

    Args:
        warmup: how many requests are not measured.
        requests: how many are; None means no limit.
        seconds: stop handing out numbers that long after the first measured one; None: no limit.
    """

    def __init__(self, warmup: int, requests: int | None, seconds: float | None) -> None:
        for name, value in (("warmup", warmup), ("requests", requests), ("seconds", seconds)):
            if value is not None and value < (0 if name == "warmup" else 1e-9):
                raise ValueError(f"{name} = {value}: must be positive")
        self._warmup = warmup
        self._requests = requests
        self._seconds = seconds
        self._changed = threading.Condition()
        self._next = 0
        self._warm_ended = 0
        self._ended = 0
        self._deadline: float | None = None

    def take(self) -> int | None:
        """The next number, waiting for the warm-up to end; None when the run has had enough."""
        with self._changed:
            if self._next < self._warmup:
                return self._hand_out()
            self._changed.wait_for(lambda: self._warm_ended >= self._warmup)
            if self._seconds is not None and self._deadline is None:
                self._deadline = time.perf_counter() + self._seconds
            return None if self._spent() else self._hand_out()

    def end(self, index: int) -> None:
        """Request `index` is over, however it went."""
        with self._changed:
            self._ended += 1
            self._warm_ended += self.is_warmup(index)
            self._changed.notify_all()

    def is_warmup(self, index: int) -> bool:
        """Whether request `index` is not measured."""
        return index < self._warmup

    @property
    def finished(self) -> bool:
        """Whether no number will be handed out any more and every request has ended."""
        with self._changed:
            warm = self._warm_ended >= self._warmup
            return warm and self._spent() and self._ended == self._next

    def _hand_out(self) -> int:
        self._next += 1
        return self._next - 1

    def _spent(self) -> bool:
        if self._requests is not None and self._next >= self._warmup + self._requests:
            return True
        return self._deadline is not None and time.perf_counter() >= self._deadline
