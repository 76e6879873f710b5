"""Logs how far the opening of an engine directory is, where it takes long."""

from __future__ import annotations

import logging
import threading
import time

logger = logging.getLogger("serving")

INTERVAL_SECONDS = 5.0


class OpeningLog:
    """Called with (what is being done, bytes done, bytes in all), from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._last < INTERVAL_SECONDS:
                return
            self._last = now
        logger.info("%s: %d %% of %.1f GiB", what, 100 * done // max(total, 1), total / 2**30)
