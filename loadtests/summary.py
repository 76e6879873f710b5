"""What a run's samples amount to."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.samples import RequestSample
from loadtests.silence import last_offset, longest_silence

PERCENTILES = (50, 90, 95, 99)
Percentiles = dict[str, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of the measured (not warm-up) requests of one run.

    Latencies are in milliseconds at the percentiles `p50`, `p90`, `p95`, `p99`, interpolated
    linearly over all successful requests (ITL: over all their gaps), and empty when there is none.

    Attributes:
        requests: measured requests.
        failed: how many failed.
        errors: error -> how often.
        wall_s: first send to last chunk of the measured requests.
        output_tokens: tokens that successful requests generated, by the server's count.
        tokens_per_s: output_tokens / wall_s.
        requests_per_s: successful requests / wall_s.
        prompt_tokens_p50: median prompt length, by the server's count.
        cached_prompt_tokens: prompt tokens that the server took from a prefix cache.
        ttft_ms: send to first text.
        tpot_ms: per request (E2E - TTFT) / (tokens - 1).
        itl_ms: gaps between consecutive chunks with text.
        e2e_ms: send to last chunk.
        late_ms: how long after it was due a request was sent.
        longest_silence_ms: longest time without a token while a request was running.
        masks: mask -> measured requests; `-` is the server's default.
        client_lag_ms: how late a greenlet of the load generator that sleeps wakes up; the largest
            of its processes.
        client_cpu_share: CPU time of the load generator / wall time, of its busiest process; 1 is
            one whole core.
    """

    requests: int
    failed: int
    errors: dict[str, int]
    wall_s: float
    output_tokens: int
    tokens_per_s: float
    requests_per_s: float
    prompt_tokens_p50: float | None
    cached_prompt_tokens: int
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    itl_ms: Percentiles
    e2e_ms: Percentiles
    late_ms: Percentiles
    longest_silence_ms: float
    masks: dict[str, int]
    client_lag_ms: Percentiles = field(default_factory=dict)
    client_cpu_share: float | None = None

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Summary:
        """Read what `write` wrote."""
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**row)


def summarise(
    samples: Iterable[RequestSample],
    *,
    client_cpu_share: float | None = None,
    client_lag_ms: Percentiles | None = None,
) -> Summary:
    """Statistics of the measured samples; failed requests count, but give no latencies."""
    measured = [sample for sample in samples if not sample.warmup]
    good = [sample for sample in measured if sample.ok]
    wall = _wall(measured)
    tokens = sum(sample.completion_tokens or 0 for sample in good)
    prompt_tokens = [s.prompt_tokens for s in good if s.prompt_tokens is not None]
    return Summary(
        requests=len(measured),
        failed=len(measured) - len(good),
        errors=dict(Counter(s.error for s in measured if s.error is not None)),
        wall_s=wall,
        output_tokens=tokens,
        tokens_per_s=tokens / wall if wall > 0 else 0.0,
        requests_per_s=len(good) / wall if wall > 0 else 0.0,
        prompt_tokens_p50=float(np.median(prompt_tokens)) if prompt_tokens else None,
        cached_prompt_tokens=sum(sample.cached_tokens or 0 for sample in good),
        ttft_ms=percentiles_ms([s.ttft_s for s in good if s.ttft_s is not None]),
        tpot_ms=percentiles_ms([s.tpot_s for s in good if s.tpot_s is not None]),
        itl_ms=percentiles_ms([gap for s in good for gap in s.gaps_s]),
        e2e_ms=percentiles_ms([s.e2e_s for s in good if s.e2e_s is not None]),
        late_ms=percentiles_ms([s.started_at - s.scheduled_at for s in measured]),
        longest_silence_ms=round(longest_silence(measured) * 1e3, 4),
        masks=dict(Counter(s.mask or "-" for s in measured)),
        client_lag_ms=client_lag_ms or {},
        client_cpu_share=client_cpu_share,
    )


def _wall(samples: Sequence[RequestSample]) -> float:
    """First send to last sign of life, seconds."""
    if not samples:
        return 0.0
    first = min(sample.started_at for sample in samples)
    return max(sample.started_at + last_offset(sample) for sample in samples) - first


def percentiles_ms(seconds: Sequence[float]) -> Percentiles:
    """Milliseconds at `PERCENTILES`; empty of nothing."""
    if not seconds:
        return {}
    values = np.percentile(np.asarray(seconds) * 1e3, PERCENTILES)
    return {f"p{p}": round(float(v), 4) for p, v in zip(PERCENTILES, values, strict=True)}
