"""The two-level bootstrap, against what its intervals must cover."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from loadtests.bootstrap import (
    Requests,
    Statistic,
    bootstrap_ratio,
    median_tpot,
    median_ttft,
    requests_of,
    speed,
    with_tpot,
)
from loadtests.samples import RequestSample

Make = Callable[..., RequestSample]


def _blocks(rng: np.random.Generator, e2e: float, repeats: int, weather: float) -> list[Requests]:
    """Blocks of 12 requests of 10 tokens; repeats differ by `weather` (of the logarithm)."""
    found = []
    for _ in range(repeats):
        times = e2e * np.exp(rng.normal(0, weather) + rng.normal(0, 0.05, 12))
        found.append(np.column_stack([np.full(12, 10.0), times, times / 5, times / 10]))
    return found


def test_requests_are_the_successful_measured_ones(make_sample: Make) -> None:
    samples = [make_sample(), make_sample(warmup=True), make_sample(error="HTTP 500")]
    ((tokens, e2e, ttft, tpot),) = requests_of(samples)
    assert (tokens, e2e, ttft, tpot) == pytest.approx((5, 0.09, 0.05, 0.01))


@pytest.mark.parametrize("statistic", [speed, median_ttft, median_tpot])
def test_blocks_that_do_not_differ_have_an_exact_ratio(
    statistic: Statistic,
) -> None:
    slow = np.tile([10.0, 2.0, 0.4, 0.2], (5, 1))
    fast = slow * [1, 0.5, 0.5, 0.5]
    found = bootstrap_ratio([slow, slow], [fast, fast], statistic)
    expected = 2.0 if statistic is speed else 0.5
    assert (found.value, found.low, found.high) == pytest.approx((expected,) * 3)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(40):
        dense, sparse = (_blocks(rng, e2e, repeats=8, weather=0.03) for e2e in (1.3, 1.0))
        found = bootstrap_ratio(dense, sparse, speed)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
        covered += found.low <= 1.3 <= found.high
    assert covered >= 32  # of eight repeats a percentile bootstrap covers about nine in ten


def test_the_weather_between_repeats_widens_the_interval() -> None:
    def width(weather: float) -> float:
        rng = np.random.default_rng(1)
        arms = [_blocks(rng, 1.0, repeats=6, weather=weather) for _ in range(2)]
        found = bootstrap_ratio(*arms, speed)
        return math.log((found.high or math.nan) / (found.low or math.nan))

    assert width(0.2) > 3 * width(0.0)


def test_what_cannot_be_known_is_not_made_up() -> None:
    (block,) = _blocks(np.random.default_rng(0), 1.0, 1, 0.0)
    alone = bootstrap_ratio([block], [block], speed)
    assert (alone.value, alone.low, alone.high) == (pytest.approx(1.0), None, None)
    single_tokens = block.copy()
    single_tokens[:, 3] = math.nan
    assert len(with_tpot(block)) == 12
    assert math.isnan(bootstrap_ratio([block], [with_tpot(single_tokens)], median_tpot).value)
    assert math.isnan(bootstrap_ratio([block], [block[:0]], speed).value)
    with pytest.raises(ValueError, match="cannot pair 1 with 2"):
        bootstrap_ratio([block], [block, block], speed)
