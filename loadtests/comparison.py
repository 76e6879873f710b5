"""Compares arms that were measured in turn: medians over repeats, and a ratio with an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.summary import Percentiles, Summary

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Block:
    """One arm measured once at one concurrency.

    Attributes:
        arm: whose server.
        concurrency: users of the closed loop.
        repeat: which pass over the arms; blocks of one repeat are neighbours in time.
        summary: what was measured.
        samples_file: name of the raw samples.
        other_cpu_share: share of the machine that unrelated processes used, 0 to 1.
        idle_cpu_share: share of the machine that the idle arms' servers used, 0 to 1.
    """

    arm: str
    concurrency: int
    repeat: int
    summary: Summary
    samples_file: str
    other_cpu_share: float
    idle_cpu_share: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of throughputs and its 95 % confidence interval, None from a single repeat."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One arm at one concurrency; latencies in milliseconds, medians over the repeats.

    `ratio` is this arm's throughput over the baseline's; the baseline's own is 1. Token counts are
    the server's: `prompt_tokens` the median of a request, the others totals of all repeats.
    """

    arm: str
    concurrency: int
    tokens_per_s: float
    ttft_p50_ms: float
    tpot_p50_ms: float
    itl_p99_ms: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    repeats: int
    requests: int
    prompt_tokens: float
    cached_prompt_tokens: int
    output_tokens: int
    client_cpu_share: float
    other_cpu_share: float


def turns(arms: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Which arm is measured when: (repeat, arm), every other repeat in the opposite order.

    A B, B A, A B, ...: whatever drifts slowly (temperature, a neighbour's load) meets both alike.
    """
    for repeat in range(repeats):
        for arm in arms if repeat % 2 == 0 else reversed(arms):
            yield repeat, arm


def paired_ratio(baseline: Sequence[float], other: Sequence[float]) -> Ratio:
    """Geometric mean of other / baseline over repeats, with Student's t interval of the logs.

    Pairing by repeat cancels what changes between repeats but not within one.

    Raises:
        ValueError: unlike or no repeats, or a throughput that is not positive.
    """
    from scipy import stats

    if len(baseline) != len(other) or not baseline:
        raise ValueError(f"cannot pair {len(baseline)} with {len(other)} repeats")
    if min(*baseline, *other) <= 0:
        raise ValueError("a block without throughput has no ratio")
    logs = [math.log(b / a) for a, b in zip(baseline, other, strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return Ratio(math.exp(mean), None, None)
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1)) * error
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def rows(blocks: Sequence[Block], baseline: str) -> list[ComparisonRow]:
    """A row per arm and concurrency, the baseline's first.

    Raises:
        ValueError: an arm and the baseline have unlike repeats at some concurrency.
    """
    arms = sorted({block.arm for block in blocks}, key=lambda arm: (arm != baseline, arm))
    levels = sorted({block.concurrency for block in blocks})
    return [
        _row(_select(blocks, arm, level), _select(blocks, baseline, level))
        for level in levels
        for arm in arms
    ]


def problems(blocks: Sequence[Block]) -> list[str]:
    """What makes a comparison void: failures, and blocks that were cut short of requests."""
    found = []
    for block in blocks:
        where = f"{block.arm} at concurrency {block.concurrency}, repeat {block.repeat}"
        if block.summary.requests == 0:
            found.append(f"{where}: no request was measured")
        for error, times in block.summary.errors.items():
            found.append(f"{where}: {times} x {error}")
    return found


def _select(blocks: Sequence[Block], arm: str, concurrency: int) -> list[Block]:
    chosen = [b for b in blocks if b.arm == arm and b.concurrency == concurrency]
    return sorted(chosen, key=lambda block: block.repeat)


def _row(blocks: Sequence[Block], baseline: Sequence[Block]) -> ComparisonRow:
    summaries = [block.summary for block in blocks]
    speed = [summary.tokens_per_s for summary in summaries]
    ratio = paired_ratio([block.summary.tokens_per_s for block in baseline], speed)
    if blocks[0].arm == baseline[0].arm:
        ratio = Ratio(1.0, 1.0, 1.0)
    return ComparisonRow(
        arm=blocks[0].arm,
        concurrency=blocks[0].concurrency,
        tokens_per_s=round(statistics.median(speed), 3),
        ttft_p50_ms=_median([s.ttft_ms for s in summaries], "p50"),
        tpot_p50_ms=_median([s.tpot_ms for s in summaries], "p50"),
        itl_p99_ms=_median([s.itl_ms for s in summaries], "p99"),
        ratio=round(ratio.value, 4),
        ratio_low=None if ratio.low is None else round(ratio.low, 4),
        ratio_high=None if ratio.high is None else round(ratio.high, 4),
        repeats=len(blocks),
        requests=sum(summary.requests for summary in summaries),
        prompt_tokens=statistics.median(s.prompt_tokens_p50 or 0.0 for s in summaries),
        cached_prompt_tokens=sum(summary.cached_prompt_tokens for summary in summaries),
        output_tokens=sum(summary.output_tokens for summary in summaries),
        client_cpu_share=round(statistics.median(s.client_cpu_share or 0.0 for s in summaries), 4),
        other_cpu_share=round(max(block.other_cpu_share for block in blocks), 4),
    )


def _median(values: Sequence[Percentiles], key: str) -> float:
    return round(statistics.median(value[key] for value in values if key in value), 4)
