"""Compares arms that were measured in turn: medians over repeats, and a ratio with an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.blocks import Block, LoadPoint, problems
from loadtests.bootstrap import (
    CONFIDENCE,
    Ratio,
    Requests,
    bootstrap_ratio,
    median_tpot,
    median_ttft,
    requests_of,
    speed,
    with_tpot,
)
from loadtests.samples import RequestSample
from loadtests.summary import PERCENTILES, Percentiles, Summary

_METRICS = ("ttft", "tpot", "itl", "e2e")


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One arm at one load; latencies in milliseconds, medians over the repeats.

    `ratio` is this arm's throughput over the reference's, with the interval of Student's t and that
    of the bootstrap; the reference's own is 1. `ttft_ratio` and `tpot_ratio` are those of the
    medians, with bootstrap intervals. Token counts are the server's: `prompt_tokens` the median of
    a request, the others totals of all repeats.
    """

    arm: str
    lengths: str
    concurrency: int | None
    rate: float | None
    tokens_per_s: float
    requests_per_s: float
    ttft_p50_ms: float | None
    ttft_p90_ms: float | None
    ttft_p95_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    tpot_p90_ms: float | None
    tpot_p95_ms: float | None
    tpot_p99_ms: float | None
    itl_p50_ms: float | None
    itl_p90_ms: float | None
    itl_p95_ms: float | None
    itl_p99_ms: float | None
    e2e_p50_ms: float | None
    e2e_p90_ms: float | None
    e2e_p95_ms: float | None
    e2e_p99_ms: float | None
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    ttft_ratio: float | None
    ttft_ratio_low: float | None
    ttft_ratio_high: float | None
    tpot_ratio: float | None
    tpot_ratio_low: float | None
    tpot_ratio_high: float | None
    repeats: int
    requests: int
    prompt_tokens: float
    cached_prompt_tokens: int
    output_tokens: int
    client_cpu_share: float
    client_lag_p90_ms: float | None
    other_cpu_share: float

    @property
    def point(self) -> LoadPoint:
        """The load."""
        return LoadPoint(self.lengths, self.concurrency, self.rate)


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


def rows(
    blocks: Sequence[Block],
    reference: str,
    samples: Mapping[str, Sequence[RequestSample]],
    repeats: int,
) -> list[ComparisonRow]:
    """A row per arm and load, the reference's first, of the loads that every arm has in full.

    Loads of which a block is missing or void (`problems`) have no row.

    Args:
        blocks: what was measured.
        reference: the arm that ratios are taken against.
        samples: `samples_file` of every block -> its samples.
        repeats: how many blocks make an arm at a load complete.
    """
    arms = sorted({block.arm for block in blocks}, key=lambda arm: (arm != reference, arm))
    found = []
    for point in dict.fromkeys(block.point for block in blocks):
        chosen = {arm: _select(blocks, arm, point) for arm in arms}
        if any(len(own) < repeats or problems(own) for own in chosen.values()):
            continue
        raw = {
            arm: [requests_of(samples[block.samples_file]) for block in own]
            for arm, own in chosen.items()
        }
        found += [_row(chosen[arm], chosen[reference], raw[arm], raw[reference]) for arm in arms]
    return found


def _select(blocks: Sequence[Block], arm: str, point: LoadPoint) -> list[Block]:
    chosen = [b for b in blocks if b.arm == arm and b.point == point]
    return sorted(chosen, key=lambda block: block.repeat)


def _row(
    blocks: Sequence[Block],
    reference: Sequence[Block],
    raw: Sequence[Requests],
    raw_reference: Sequence[Requests],
) -> ComparisonRow:
    summaries = [block.summary for block in blocks]
    point = blocks[0].point
    own = blocks[0].arm == reference[0].arm
    speeds = [summary.tokens_per_s for summary in summaries]
    ratio = paired_ratio([block.summary.tokens_per_s for block in reference], speeds)
    drawn = {
        "speed": bootstrap_ratio(raw_reference, raw, speed),
        "ttft": bootstrap_ratio(raw_reference, raw, median_ttft),
        "tpot": bootstrap_ratio(
            [with_tpot(block) for block in raw_reference],
            [with_tpot(block) for block in raw],
            median_tpot,
        ),
    }
    if own:
        ratio = Ratio(1.0, 1.0, 1.0)
        drawn = dict.fromkeys(drawn, ratio)
    return ComparisonRow(
        arm=blocks[0].arm,
        lengths=point.lengths,
        concurrency=point.concurrency,
        rate=point.rate,
        tokens_per_s=round(statistics.median(speeds), 3),
        requests_per_s=round(statistics.median(s.requests_per_s for s in summaries), 4),
        **_latencies(summaries),
        ratio=round(ratio.value, 4),
        ratio_low=_rounded(ratio.low),
        ratio_high=_rounded(ratio.high),
        bootstrap_low=_rounded(drawn["speed"].low),
        bootstrap_high=_rounded(drawn["speed"].high),
        **_ratio_fields("ttft", drawn["ttft"]),
        **_ratio_fields("tpot", drawn["tpot"]),
        repeats=len(blocks),
        requests=sum(summary.requests for summary in summaries),
        prompt_tokens=statistics.median(s.prompt_tokens_p50 or 0.0 for s in summaries),
        cached_prompt_tokens=sum(summary.cached_prompt_tokens for summary in summaries),
        output_tokens=sum(summary.output_tokens for summary in summaries),
        client_cpu_share=round(statistics.median(s.client_cpu_share or 0.0 for s in summaries), 4),
        client_lag_p90_ms=_median([s.client_lag_ms for s in summaries], "p90"),
        other_cpu_share=round(max(block.other_cpu_share for block in blocks), 4),
    )


def _latencies(summaries: Sequence[Summary]) -> dict[str, float | None]:
    return {
        f"{metric}_p{p}_ms": _median([getattr(s, f"{metric}_ms") for s in summaries], f"p{p}")
        for metric in _METRICS
        for p in PERCENTILES
    }


def _ratio_fields(metric: str, ratio: Ratio) -> dict[str, float | None]:
    return {
        f"{metric}_ratio": _rounded(ratio.value),
        f"{metric}_ratio_low": _rounded(ratio.low),
        f"{metric}_ratio_high": _rounded(ratio.high),
    }


def _median(values: Sequence[Percentiles], key: str) -> float | None:
    found = [value[key] for value in values if key in value]
    return round(statistics.median(found), 4) if found else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)
