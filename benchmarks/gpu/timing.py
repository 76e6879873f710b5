"""Times of calls on a GPU: captured graphs, replayed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch

Call = Callable[[int], object]
"""A product with the weights of copy number i."""


class Timer(Protocol):
    """Measures calls in turns."""

    def times(self, calls: Mapping[str, Call], copies: int) -> tuple[dict[str, float], Failures]:
        """Median seconds of a call by name, and what failed: name -> its message."""

    def synchronise(self) -> None:
        """Wait until the device has nothing to do."""


Failures = dict[str, str]


def first_line(error: Exception) -> str:
    """What a report has room for."""
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]


@dataclass(frozen=True)
class GraphTimer:
    """CUDA graphs of all copies in a row, so that neither launches nor caches are measured.

    Attributes:
        rounds: replays of each graph, in turns.
    """

    rounds: int = 15

    def times(self, calls: Mapping[str, Call], copies: int) -> tuple[dict[str, float], Failures]:
        """See `Timer.times`."""
        graphs: dict[str, torch.cuda.CUDAGraph] = {}
        failures: Failures = {}
        for name, call in calls.items():
            try:
                graphs[name] = captured(_all_copies(call, copies))
            except Exception as error:  # this torch or GPU lacks it, and the report says so
                failures[name] = first_line(error)
                torch.cuda.synchronize()
        samples: dict[str, list[float]] = {name: [] for name in graphs}
        for _ in range(self.rounds):
            for name, graph in graphs.items():
                begin, end = _event(), _event()
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                samples[name].append(begin.elapsed_time(end) / 1000 / copies)
        return {name: median(values) for name, values in samples.items()}, failures

    def synchronise(self) -> None:
        """See `Timer.synchronise`."""
        torch.cuda.synchronize()


@dataclass(frozen=True)
class WallTimer:
    """The clock on the wall, for devices without graphs: the CPU, in tests."""

    rounds: int = 2

    def times(self, calls: Mapping[str, Call], copies: int) -> tuple[dict[str, float], Failures]:
        """See `Timer.times`."""
        found: dict[str, float] = {}
        failures: Failures = {}
        for name, call in calls.items():
            samples = []
            try:
                for i in range(self.rounds):
                    begin = time.perf_counter()
                    call(i % copies)
                    samples.append(time.perf_counter() - begin)
            except Exception as error:
                failures[name] = first_line(error)
                continue
            found[name] = median(samples)
        return found, failures

    def synchronise(self) -> None:
        """See `Timer.synchronise`."""


def _all_copies(call: Call, copies: int) -> Callable[[], object]:
    return lambda: [call(i) for i in range(copies)]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of what `work` launches, after two runs that are not captured."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
