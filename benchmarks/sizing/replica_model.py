"""A replica as a queueing system: one server that works in steps over a batch.

Between M/G/1 and M/G/c: all running requests share each step, whose time grows with how many decode
and how many prompt tokens it takes along,

    step = fixed + per_sequence * decoding + per_prompt_token * prompt tokens

and a request waits for the step that is under way and for the prompts before its own. No closed
form has both, so it is simulated, step by step as `engines.cpu.scheduler` goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """A request: when it arrives (seconds), its prompt's tokens, and its answer's."""

    arrival: float
    prompt: int
    output: int


@dataclass(frozen=True)
class StepCosts:
    """What a step takes, in seconds.

    Attributes:
        fixed: of every step.
        per_sequence: of a sequence that decodes.
        per_prompt_token: of a prompt's token.
        outside: of a request before and after the engine: HTTP, tokens, the client.
    """

    fixed: float
    per_sequence: float
    per_prompt_token: float
    outside: float


@dataclass(frozen=True)
class BatchLimits:
    """The engine's options `max_sequences`, `step_tokens` and `mixed_prefill_tokens`."""

    sequences: int = 64
    step_tokens: int = 512
    mixed_prefill_tokens: int = 256


@dataclass
class _Running:
    number: int
    prompt_left: int
    output_left: int


@dataclass
class _Replica:
    """One replica's clock, queue and batch."""

    costs: StepCosts
    limits: BatchLimits
    first_token: dict[int, float]
    clock: float = 0.0
    waiting: deque[_Running] = field(default_factory=deque)
    running: list[_Running] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        return len(self.waiting) + len(self.running)

    def advance(self, until: float) -> None:
        """Do every step that begins before `until`."""
        while self.in_flight and self.clock < until:
            self._step()
        if not self.in_flight:
            self.clock = max(self.clock, until)

    def _step(self) -> None:
        while self.waiting and len(self.running) < self.limits.sequences:
            self.running.append(self.waiting.popleft())
        decoding = [r for r in self.running if not r.prompt_left]
        budget = self.limits.mixed_prefill_tokens if decoding else self.limits.step_tokens
        begun, prompt_tokens = [], 0
        for request in self.running:
            take = min(request.prompt_left, budget - prompt_tokens)
            if take:
                request.prompt_left -= take
                prompt_tokens += take
                if not request.prompt_left:
                    begun.append(request)
        costs = self.costs
        self.clock += costs.fixed + costs.per_sequence * len(decoding)
        self.clock += costs.per_prompt_token * prompt_tokens
        for request in begun:
            self.first_token[request.number] = self.clock
        for request in (*decoding, *begun):
            request.output_left -= 1
        self.running = [r for r in self.running if r.output_left]


def simulate(
    jobs: Sequence[Job], costs: StepCosts, replicas: int = 1, limits: BatchLimits | None = None
) -> list[float]:
    """Seconds to the first token of every job, each sent to the replica with the fewest in flight.

    Args:
        jobs: by arrival.
        costs: of a step.
        replicas: how many.
        limits: of a batch.

    Raises:
        ValueError: jobs are not in order, or have no tokens.
    """
    limits = limits or BatchLimits()
    first_token: dict[int, float] = {}
    all_replicas = [_Replica(costs, limits, first_token) for _ in range(replicas)]
    last = 0.0
    for number, job in enumerate(jobs):
        if job.arrival < last or job.prompt < 1 or job.output < 1:
            raise ValueError(f"job {number} ({job}) is out of order or empty")
        last = job.arrival
        for replica in all_replicas:
            replica.advance(job.arrival)
        chosen = min(all_replicas, key=lambda replica: replica.in_flight)
        chosen.waiting.append(_Running(number, job.prompt, job.output))
    for replica in all_replicas:
        replica.advance(float("inf"))
    return [first_token[i] - job.arrival + costs.outside for i, job in enumerate(jobs)]


def highest_rate(
    unit: Sequence[Job],
    costs: StepCosts,
    replicas: int,
    limit: float,
    limits: BatchLimits | None = None,
) -> float:
    """Requests a second at which 95 % still get their first token within `limit` seconds.

    Args:
        unit: jobs that arrive once a second on average; sped up until they are too fast.
        costs: of a step.
        replicas: how many.
        limit: seconds.
        limits: of a batch.

    Raises:
        ValueError: not even single requests are that fast.
    """

    def holds(rate: float) -> bool:
        jobs = [Job(job.arrival / rate, job.prompt, job.output) for job in unit]
        return quantile(simulate(jobs, costs, replicas, limits), 0.95) <= limit

    low = 1e-3
    if not holds(low):
        raise ValueError(f"a first token within {limit:g} s is more than an idle replica does")
    high = 1.0
    while holds(high):
        high *= 2
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of all do not exceed, by linear interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
