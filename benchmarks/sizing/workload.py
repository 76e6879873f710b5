"""Requests of random lengths that arrive as a Poisson process."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice

from benchmarks.sizing.replica_model import Job
from loadtests.arrivals import poisson_arrivals


@dataclass(frozen=True)
class Lengths:
    """Tokens, uniform between two bounds, both included."""

    prompt: tuple[int, int] = (32, 96)
    output: tuple[int, int] = (8, 24)

    @property
    def mean_output(self) -> float:
        """Tokens of an answer."""
        return sum(self.output) / 2


def poisson_jobs(rate: float, count: int, seed: int, lengths: Lengths) -> list[Job]:
    """`count` requests at `rate` a second; the same for the same seed."""
    draw = random.Random(f"lengths:{seed}")
    return [
        Job(due, draw.randint(*lengths.prompt), draw.randint(*lengths.output))
        for due in islice(poisson_arrivals(rate, seed), count)
    ]
