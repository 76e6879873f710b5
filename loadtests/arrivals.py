"""Open-loop arrivals: when requests are due, whether or not earlier ones have finished."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson_arrivals(rate: float, seed: int) -> Iterator[float]:
    """Seconds since the start at which a Poisson process of `rate` per second has its events.

    Endless, and the same for the same seed. Inter-arrival times are exponential, as MLPerf's
    server scenario has them.

    Raises:
        ValueError: the rate is not positive.
    """
    if not rate > 0:
        raise ValueError(f"arrival rate {rate} per second: must be positive")
    rng = random.Random(f"arrivals:{seed}")
    return _accumulate(rng, rate)


def _accumulate(rng: random.Random, rate: float) -> Iterator[float]:
    due = 0.0
    while True:
        due += rng.expovariate(rate)
        yield due
