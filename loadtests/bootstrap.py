"""Two-level bootstrap of a ratio between two arms that were measured in paired repeats.

A draw takes as many repeats as there are, with replacement, and of each the requests of both arms,
with replacement (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
Requests of one repeat share its weather: to resample them alone would give an interval that is far
too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtests.samples import RequestSample

DRAWS = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio and its 95 % confidence interval, None from a single repeat."""

    value: float
    low: float | None
    high: float | None


Requests = NDArray[np.float64]
"""A row per successful request: tokens, E2E, TTFT, TPOT (seconds)."""

Statistic = Callable[[Requests], float]


def requests_of(samples: Sequence[RequestSample]) -> Requests:
    """What a block's successful measured requests took; TPOT is NaN for a single token."""
    rows = [
        (s.completion_tokens or 0, s.e2e_s or 0.0, s.ttft_s or 0.0, s.tpot_s or math.nan)
        for s in samples
        if s.ok and not s.warmup
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def speed(requests: Requests) -> float:
    """Tokens per second of one stream; with n always running, throughput is n times as much."""
    return float(requests[:, 0].sum() / requests[:, 1].sum())


def median_ttft(requests: Requests) -> float:
    """Median time to first token, seconds."""
    return float(np.median(requests[:, 2]))


def median_tpot(requests: Requests) -> float:
    """Median time per output token after the first, seconds."""
    known = requests[np.isfinite(requests[:, 3]), 3]
    return float(np.median(known)) if len(known) else math.nan


def bootstrap_ratio(
    baseline: Sequence[Requests], other: Sequence[Requests], statistic: Statistic, seed: int = 0
) -> Ratio:
    """Geometric mean over repeats of statistic(other) / statistic(baseline), and its interval.

    Percentiles of `DRAWS` draws, the same ones for the same seed. Without a second repeat there is
    no interval, since nothing says how repeats differ; without the statistic the value is NaN.

    Raises:
        ValueError: unlike or no repeats.
    """
    if len(baseline) != len(other) or not baseline:
        raise ValueError(f"cannot pair {len(baseline)} with {len(other)} repeats")
    none = Ratio(math.nan, None, None)
    if not all(map(len, [*baseline, *other])):
        return none
    first, second = ([statistic(block) for block in arm] for arm in (baseline, other))
    if not all(value > 0 for value in (*first, *second)):  # NaN is not
        return none
    value = float(np.exp(np.mean(np.log(second) - np.log(first))))
    if len(baseline) < 2:
        return Ratio(value, None, None)
    rng = np.random.default_rng(seed)
    means = [_draw(baseline, other, statistic, rng) for _ in range(DRAWS)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.exp(np.nanquantile(means, [tail, 1 - tail]))
    return Ratio(value, float(low), float(high))


def _draw(
    baseline: Sequence[Requests],
    other: Sequence[Requests],
    statistic: Statistic,
    rng: np.random.Generator,
) -> float:
    repeats = rng.integers(len(baseline), size=len(baseline))
    logs = [
        np.log(statistic(_resample(other[r], rng)) / statistic(_resample(baseline[r], rng)))
        for r in repeats
    ]
    return float(np.mean(logs))


def _resample(requests: Requests, rng: np.random.Generator) -> Requests:
    return requests[rng.integers(len(requests), size=len(requests))]
