"""Which requests of an open loop a process sends, and when each is due."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.arrivals import poisson_arrivals
from loadtests.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class Share:
    """One of several processes that send the requests of one run between them.

    Every process goes through all requests and sends those whose number, divided by `processes`,
    leaves `process`: so numbers, prompts, masks and due times are those of a run in one process.
    """

    process: int = 0
    processes: int = 1

    def has(self, index: int) -> bool:
        """Whether request `index` is sent here."""
        return index % self.processes == self.process


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """The requests of an open loop: warm-up first, then as they are due.

    Attributes:
        rate: Poisson arrivals per second; None with a trace.
        trace: requests with their times instead.
        seed: fixes the arrivals.
        warmup: requests before the measured ones.
        requests: measured requests of all processes; None for no limit.
        seconds: no request is due later; None for no limit.
    """

    rate: float | None
    trace: Sequence[TraceRequest]
    seed: int
    warmup: int
    requests: int | None
    seconds: float | None

    def arrivals(self, share: Share) -> Iterator[tuple[int, float]]:
        """(index, seconds after the start) of the measured requests of one process, in order."""
        for number, due in enumerate(self._all()):
            spent = self.requests is not None and number >= self.requests
            if spent or (self.seconds is not None and due > self.seconds):
                return
            if share.has(self.warmup + number):
                yield self.warmup + number, due

    def warmups(self, share: Share) -> Iterator[int]:
        """Indices of the warm-up requests of one process."""
        return (index for index in range(self.warmup) if share.has(index))

    def _all(self) -> Iterator[float]:
        if self.rate is not None:
            return poisson_arrivals(self.rate, self.seed)
        return (request.due_s for request in self.trace)
