"""Turns a summary into a verdict that a script or CI job can trust."""

from __future__ import annotations

import re
from dataclasses import dataclass

from loadtests.summary import PERCENTILES, Summary

_METRICS = ("ttft", "tpot", "itl", "e2e")
_SLO = re.compile(rf"({'|'.join(_METRICS)})_p({'|'.join(map(str, PERCENTILES))})=(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Slo:
    """A bound on a latency percentile, milliseconds."""

    metric: str
    percentile: int
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> Slo:
        """From `METRIC_pP=MS`, such as `ttft_p99=500`.

        Raises:
            ValueError: any other text.
        """
        match = _SLO.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"objective {text!r}: expected METRIC_pP=MILLISECONDS with a metric of "
                f"{', '.join(_METRICS)} and P of {', '.join(map(str, PERCENTILES))}, "
                "such as ttft_p99=500"
            )
        return cls(match[1], int(match[2]), float(match[3]))

    def violation(self, summary: Summary) -> str | None:
        """What is wrong, or None when the bound holds."""
        name = f"{self.metric} p{self.percentile}"
        measured: float | None = getattr(summary, f"{self.metric}_ms").get(f"p{self.percentile}")
        if measured is None:
            return f"{name}: nothing was measured"
        if measured > self.limit_ms:
            return f"{name} is {measured:.1f} ms, the limit is {self.limit_ms:g} ms"
        return None


def violations(summary: Summary, *, max_failure_share: float, slos: list[Slo]) -> list[str]:
    """Why a run must not pass; empty when it may.

    A run without one measured request never passes.
    """
    if summary.requests == 0:
        return ["no request was measured"]
    found = []
    share = summary.failed / summary.requests
    if share > max_failure_share:
        worst = max(summary.errors, key=lambda error: summary.errors[error])
        found.append(
            f"{summary.failed} of {summary.requests} requests failed "
            f"(allowed share {max_failure_share:g}); most often: {worst}"
        )
    return found + [v for slo in slos if (v := slo.violation(summary)) is not None]
