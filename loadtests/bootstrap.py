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

Statistic = Callable[[Requests], NDArray[np.float64]]
"""Reduces [..., requests, 4] to [...]."""

_CHUNK = 1_000_000


def requests_of(samples: Sequence[RequestSample]) -> Requests:
    """What a block's successful measured requests took; TPOT is NaN for a single token."""
    rows = [
        (s.completion_tokens or 0, s.e2e_s or 0.0, s.ttft_s or 0.0, s.tpot_s or math.nan)
        for s in samples
        if s.ok and not s.warmup
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def with_tpot(requests: Requests) -> Requests:
    """Those requests that have a TPOT."""
    return requests[np.isfinite(requests[:, 3])]


def speed(requests: Requests) -> NDArray[np.float64]:
    """Tokens per second of one stream; with n always running, throughput is n times as much."""
    return np.asarray(requests[..., 0].sum(axis=-1) / requests[..., 1].sum(axis=-1))


def median_ttft(requests: Requests) -> NDArray[np.float64]:
    """Median time to first token, seconds."""
    return np.asarray(np.median(requests[..., 2], axis=-1))


def median_tpot(requests: Requests) -> NDArray[np.float64]:
    """Median time per output token after the first, seconds."""
    return np.asarray(np.median(requests[..., 3], axis=-1))


def bootstrap_ratio(
    baseline: Sequence[Requests], other: Sequence[Requests], statistic: Statistic, seed: int = 0
) -> Ratio:
    """Geometric mean over repeats of statistic(other) / statistic(baseline), and its interval.

    Percentiles of `DRAWS` draws, the same ones for the same seed. Without a second repeat there is
    no interval, since nothing says how repeats differ; with an empty block the value is NaN.

    Raises:
        ValueError: unlike or no repeats.
    """
    if len(baseline) != len(other) or not baseline:
        raise ValueError(f"cannot pair {len(baseline)} with {len(other)} repeats")
    if not all(map(len, [*baseline, *other])):
        return Ratio(math.nan, None, None)
    first, second = ([float(statistic(block)) for block in arm] for arm in (baseline, other))
    if not all(value > 0 for value in (*first, *second)):
        return Ratio(math.nan, None, None)
    value = float(np.exp(np.mean(np.log(second) - np.log(first))))
    if len(baseline) < 2:
        return Ratio(value, None, None)
    rng = np.random.default_rng(seed)
    drawn_first, drawn_second = (
        np.stack([_resampled(block, statistic, rng) for block in arm]) for arm in (baseline, other)
    )
    logs = np.log(drawn_second) - np.log(drawn_first)
    repeats = rng.integers(len(logs), size=(len(logs), DRAWS))
    # A repeat that is drawn twice has its requests drawn twice, too.
    draws = rng.integers(DRAWS, size=repeats.shape)
    means = logs[repeats, draws].mean(axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.exp(np.quantile(means, [tail, 1 - tail]))
    return Ratio(value, float(low), float(high))


def _resampled(
    requests: Requests, statistic: Statistic, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The statistic of `DRAWS` samples of the requests, with replacement: [DRAWS]."""
    size = len(requests)
    rows = max(1, _CHUNK // size)
    parts = [
        statistic(requests[rng.integers(size, size=(min(rows, DRAWS - start), size))])
        for start in range(0, DRAWS, rows)
    ]
    return np.concatenate(parts)
