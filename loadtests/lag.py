"""Measures how late this process wakes up: what a lack of CPU adds to every time it takes."""

from __future__ import annotations

import time

import gevent

from loadtests.summary import Percentiles, percentiles_ms

_PERIOD_S = 0.02


class LagWatch:
    """A greenlet that sleeps, and notes by how much it overslept, from `start` to `stop`."""

    def __init__(self) -> None:
        self._late_s: list[float] = []
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin; again does nothing."""
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._watch)

    def stop(self) -> Percentiles:
        """How late it woke, milliseconds; empty when it never started."""
        if self._greenlet is not None:
            self._greenlet.kill()
        return percentiles_ms(self._late_s)

    def _watch(self) -> None:
        while True:
            due = time.perf_counter() + _PERIOD_S
            gevent.sleep(_PERIOD_S)
            self._late_s.append(time.perf_counter() - due)
