"""What one measurement of one arm is, in which order they are taken, and which of them are void."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.summary import Summary
from loadtests.verdict import client_limits, failures


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """What is asked of a server: how long requests are, and how many there are.

    Attributes:
        lengths: `PROMPT/OUTPUT` tokens, or what says where the prompts came from.
        concurrency: users of a closed loop; None in an open one.
        rate: arrivals per second of an open loop; None in a closed one. Both are None when a trace
            says when requests are due.
    """

    lengths: str
    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.lengths} tokens, {self.rate:g} requests/s"
        if self.concurrency is None:
            return f"{self.lengths}, as the trace has it"
        return f"{self.lengths} tokens, {self.concurrency} at a time"

    @property
    def open_loop(self) -> bool:
        """Whether requests are sent when they are due, whatever is still running."""
        return self.concurrency is None

    @property
    def load(self) -> float:
        """Where it lies on an axis of loads."""
        return float(self.concurrency or self.rate or 1.0)


@dataclass(frozen=True, slots=True)
class Block:
    """One arm measured once at one load.

    Attributes:
        arm: whose server.
        point: the load.
        repeat: which pass over the arms; blocks of one repeat are neighbours in time.
        summary: what was measured.
        samples_file: name of the raw samples.
        other_cpu_share: share of the machine that unrelated processes used, 0 to 1.
        idle_cpu_share: share of the machine that the idle arms' servers used, 0 to 1.
    """

    arm: str
    point: LoadPoint
    repeat: int
    summary: Summary
    samples_file: str
    other_cpu_share: float
    idle_cpu_share: float

    def __str__(self) -> str:
        return f"{self.arm}, {self.point}, repeat {self.repeat + 1}"


def turns(arms: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Which arm is measured when: (repeat, arm), every other repeat in the opposite order.

    A B, B A, A B, ...: whatever drifts slowly (temperature, a neighbour's load) meets both alike.
    """
    for repeat in range(repeats):
        for arm in arms if repeat % 2 == 0 else reversed(arms):
            yield repeat, arm


def problems(blocks: Sequence[Block]) -> list[str]:
    """What makes blocks void: failed requests, none at all, a server that stalled."""
    return [f"{block}: {reason}" for block in blocks for reason in failures(block.summary)]


def doubts(blocks: Sequence[Block]) -> list[str]:
    """Where the load generator, not the server, was the limit."""
    return [
        f"{block}: {reason}"
        for block in blocks
        for reason in client_limits(block.summary, open_loop=block.point.open_loop)
    ]
