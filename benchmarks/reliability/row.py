"""What a fault did to the requests of its time."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.common.result_file import ResultRow
from benchmarks.reliability.client import Completion, Reply
from benchmarks.reliability.site import Running

KEY = ("fault",)
"""What names a row."""

FLAT_SHARE, FLAT_MIB = 0.05, 8.0
"""Memory is flat when it grows by no more than the share and so many MiB after the warm-up."""


@dataclass
class Tally:
    """Counts requests, each once.

    Attributes:
        fault: what happens to them.
        outcome: `answered` (in full, and as alone), `refused` (with the error that the server
            documents), `left` (the client left, on purpose) or `lost` (anything else).
        broken: first attempts that a killed server broke off, and that their clients repeated.
        problems: what else went wrong.
        rss_mib: memory of the server after each part.
        warm_up: the parts after which memory should stay.
        details: further figures.
    """

    fault: str
    outcome: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    problems: list[str] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    warm_up: int = 1
    details: dict[str, Any] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    def take(self, running: Running, completion: Completion, reply: Reply, *codes: str) -> str:
        """Count a reply, which may be an error with one of `codes`; what it counts as."""
        verdict: str = completion.verdict(reply)
        error = reply.error()
        if error is not None and error["code"] not in codes:
            self.problem(f"{reply.status} {error['code']}: {error['message']}")
            verdict = "lost"
        elif verdict == "lost":
            self.problem(f"status {reply.status}, {len(reply.body)} bytes, {reply.complete=}")
        elif verdict == "answered":
            text = completion.text(reply)
            if text != running.alone.get(completion, text):
                self.problem(f"another answer than alone: {completion}")
                verdict = "lost"
        elif error is not None and error["code"] == "overloaded" and not reply.retry_after:
            self.problem("a refusal without Retry-After")
        self.outcome[verdict] += 1
        return verdict

    def expect(self, happened: bool, what: str) -> None:
        """Count something other than a completion: refused as it must be, or lost."""
        self.outcome["refused" if happened else "lost"] += 1
        if not happened:
            self.problem(what)

    def problem(self, text: str) -> None:
        """Say what is wrong."""
        self.problems.append(text[:300])

    async def settle(self, running: Running) -> None:
        """Note the memory, and what has not returned to 0."""
        if left := await running.gauges_left():
            self.problem(f"not back to 0: {', '.join(left)}")
        self.rss_mib.append(round(running.rss_mib(), 1))

    def row(self) -> ResultRow:
        """The row of the result file."""
        first = last = None
        if self.rss_mib:
            first, last = self.rss_mib[self.warm_up - 1], self.rss_mib[-1]
            if last > first * (1 + FLAT_SHARE) + FLAT_MIB:
                self.problem(f"memory grew from {first} to {last} MiB after the warm-up")
        row = FaultRow(
            fault=self.fault,
            sent=self.outcome.total(),
            answered=self.outcome["answered"],
            refused=self.outcome["refused"],
            left=self.outcome["left"],
            lost=self.outcome["lost"],
            broken=self.broken,
            rss_mib_warm=first,
            rss_mib_end=last,
            seconds=round(time.monotonic() - self.begin, 1),
            problems=list(dict.fromkeys(self.problems)),
        )
        return asdict(row) | self.details


@dataclass(frozen=True)
class FaultRow:
    """See `Tally`; `problems` is empty where everything was as it must be."""

    fault: str
    sent: int
    answered: int
    refused: int
    left: int
    lost: int
    broken: int
    rss_mib_warm: float | None
    rss_mib_end: float | None
    seconds: float
    problems: list[str]
