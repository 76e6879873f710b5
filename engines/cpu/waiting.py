"""How many sequences wait: the one number behind refusals and statistics."""

from __future__ import annotations

import threading

from engines.errors import EngineOverloadedError


class WaitingCounter:
    """Sequences that were accepted and do not run: on their way, queued, or preempted.

    The event loop accepts them and the engine's thread starts them, hence the lock.

    Args:
        limit: more are not accepted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many wait now."""
        return self._count

    def accept(self, sequences: int) -> None:
        """Count new ones, all of them or none.

        Raises:
            EngineOverloadedError: they would be more than the limit.
        """
        with self._lock:
            if self._count + sequences > self._limit:
                raise EngineOverloadedError(
                    f"{self._count} sequences are waiting, and at most {self._limit} may"
                )
            self._count += sequences

    def enter(self) -> None:
        """A running sequence was preempted: it waits again, whatever the limit."""
        with self._lock:
            self._count += 1

    def leave(self, sequences: int = 1) -> None:
        """So many started to run, or ended while they waited."""
        with self._lock:
            self._count -= sequences
