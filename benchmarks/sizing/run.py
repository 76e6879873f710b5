"""Measures one replica, fits its model, checks the model at two loads, and sizes more replicas."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from benchmarks.common.arm_process import ArmError, ArmProcess
from benchmarks.common.machine import OtherCpu
from benchmarks.sizing.fit import decode_gap, fit_costs
from benchmarks.sizing.measure import Timed, send_all
from benchmarks.sizing.replica_model import Job, StepCosts, highest_rate, quantile, simulate
from benchmarks.sizing.workload import Lengths, poisson_jobs

PROMPTS = (24, 64, 96)
BATCHES = (1, 2, 4, 8, 12)
REPEATS = 4
"""Of each prompt's length, before, between and after the loads; of a batch a quarter of it."""
LIMIT = 5.0
"""A first token may take this many times what it takes alone, for 95 % of requests."""
SHARES = (0.45, 0.8)
"""Loads that the model is checked at, of the highest rate that it gives."""
REPLICAS = (1, 2, 4, 8)
SIMULATED = 4000
"""Requests in a simulation that sizes."""
_START_S = 120.0

Say = Callable[[str], object]


@dataclass(frozen=True)
class Target:
    """A server that is measured."""

    url: str
    model: str
    vocabulary: int

    def send(self, jobs: list[Job]) -> list[Timed]:
        """See `benchmarks.sizing.measure.send_all`."""
        return asyncio.run(send_all(self.url, self.model, self.vocabulary, jobs))


def size(directory: Path, port: int, seconds: float, say: Say) -> dict[str, Any]:
    """Everything that the result file holds: `rows` (loads), `sizing`, `costs`, and the rest.

    Args:
        directory: engine directory, served on the first core alone.
        port: of the loopback interface.
        seconds: of each load.
        say: gets a line per part.

    Raises:
        ArmError: the server does not start.
    """
    process = psutil.Process()
    cores = process.cpu_affinity()
    command = ["taskset", "-c", str(cores[0]), sys.executable, "-m", "twofour.cli", "serve"]
    command += [str(directory), "--port", str(port), "--engine-option", "threads=1"]
    server = ArmProcess("server", command)
    process.cpu_affinity(cores[1:2] or cores)
    try:
        target = _wait(server, f"http://127.0.0.1:{port}")
        target.send([Job(0.1 * i, 64, 8) for i in range(8)])
        points = Points()
        points.measure(target)
        lengths = Lengths()
        unit = poisson_jobs(1.0, SIMULATED, 1, lengths)
        first = points.costs()
        rate = highest_rate(unit, first, 1, LIMIT * _alone(first))
        loads = []
        for number, share in enumerate(SHARES):
            count = int(seconds * share * rate)
            jobs = poisson_jobs(share * rate, count, 100 + number, lengths)
            loads.append(_load(target, jobs, share * rate))
            # Machines change their speed; costs are those of the whole time.
            points.measure(target)
        memory = server.alive().memory_info().rss
    finally:
        server.end()
        process.cpu_affinity(cores)
    costs = points.costs()
    say(f"{costs}")
    rows = [load.row(costs) for load in loads]
    for row in rows:
        say(f"{row}")
    limit = LIMIT * _alone(costs)
    sizing = [_sized(unit, costs, count, limit, lengths, memory) for count in REPLICAS]
    return {
        "rows": rows,
        "sizing": sizing,
        "costs": asdict(costs),
        "points": points.as_dict(),
        "lengths": asdict(lengths),
        "alone_ms": 1e3 * _alone(costs),
        "limit_ms": 1e3 * limit,
        "replica_memory_mib": memory / 2**20,
    }


def _wait(server: ArmProcess, url: str) -> Target:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        server.alive()
        try:
            card = httpx.get(f"{url}/v1/models", timeout=5).json()["data"][0]
            return Target(url, card["id"], 32_000)
        except httpx.TransportError:
            time.sleep(0.2)
    raise ArmError(f"the server did not start within {_START_S:g} s:\n{server.tail()}")


class Points:
    """What costs are fitted to: first tokens of single prompts, and gaps of batches, in seconds."""

    def __init__(self) -> None:
        self._single: dict[int, list[float]] = {prompt: [] for prompt in PROMPTS}
        self._gaps: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        self._turn = 0

    def measure(self, target: Target) -> None:
        """Add a round of measurements."""
        for turn in range(REPEATS):
            self._turn += 1
            # Prompts go by the job, so that no two share a prefix.
            for prompt in PROMPTS:
                (answer,) = target.send([Job(1e-6 * self._turn, prompt, 2)])
                self._single[prompt].append(answer.tokens[0])
            if turn % 4 == 0:
                for batch in BATCHES:
                    jobs = [Job(1e-6 * self._turn, 32, 24) for _ in range(batch)]
                    self._gaps[batch].append(decode_gap([a.tokens for a in target.send(jobs)]))

    def costs(self) -> StepCosts:
        """The fit to all rounds so far."""
        return fit_costs(_medians(self._single), _medians(self._gaps))

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Medians in milliseconds, for the result file."""
        return {
            name: {str(key): 1e3 * value for key, value in _medians(points).items()}
            for name, points in (("first_token_ms", self._single), ("gap_ms", self._gaps))
        }


def _medians(points: dict[int, list[float]]) -> dict[int, float]:
    return {key: median(values) for key, values in points.items()}


def _alone(costs: StepCosts) -> float:
    """Seconds to the first token of a prompt of 64 tokens that waits for nothing."""
    return simulate([Job(0.0, 64, 1)], costs)[0]


@dataclass(frozen=True)
class Load:
    """One load as it was measured."""

    rate: float
    jobs: list[Job]
    answers: list[Timed]
    other_cpu_share: float

    def row(self, costs: StepCosts) -> dict[str, Any]:
        """Beside what is predicted for the same arrivals."""
        measured = [answer.tokens[0] for answer in self.answers]
        predicted = simulate(self.jobs, costs)
        row: dict[str, Any] = {"rate": self.rate, "requests": len(self.jobs)}
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            found, expected = quantile(measured, share), quantile(predicted, share)
            row |= {f"{name}_ms": 1e3 * found, f"{name}_predicted_ms": 1e3 * expected}
            row[f"{name}_error"] = expected / found - 1
        row["late_p95_ms"] = 1e3 * quantile([answer.late for answer in self.answers], 0.95)
        row["other_cpu_share"] = round(self.other_cpu_share, 4)
        return row


def _load(target: Target, jobs: list[Job], rate: float) -> Load:
    with OtherCpu() as other:
        answers = target.send(jobs)
    return Load(rate, jobs, answers, other.share)


def _sized(
    unit: list[Job], costs: StepCosts, replicas: int, limit: float, lengths: Lengths, memory: int
) -> dict[str, Any]:
    rate = highest_rate(unit, costs, replicas, limit)
    tokens = rate * lengths.mean_output
    return {
        "replicas": replicas,
        "rate": rate,
        "tokens_per_s": tokens,
        "cores": replicas,
        "memory_mib": replicas * memory / 2**20,
        "core_hours_per_million_tokens": replicas * 1e6 / tokens / 3600,
    }
