"""What forbids to believe a block: a failed request, a stall, a client that was the limit."""

from __future__ import annotations

from loadtests.client_calibration import LIMIT_MS
from loadtests.summary import Summary

CLIENT_CPU_LIMIT = 0.85
"""Share of a core above which a load generator's process is taken for the limit."""

LATE_LIMIT_MS = 20.0
"""Later than this, nine in ten requests of an open loop may not be sent."""

_STALL_MIN_MS = 1000.0
_STALL_TTFTS = 4
_STALL_GAPS = 20


def failures(summary: Summary) -> list[str]:
    """What makes a block void whatever the machine: no number of it may be shown."""
    if summary.requests == 0:
        return ["no request was measured"]
    found = [f"{times} x {error}" for error, times in summary.errors.items()]
    limit = stall_limit_ms(summary)
    if summary.longest_silence_ms > limit:
        found.append(
            f"the server stalled: {summary.longest_silence_ms / 1e3:.1f} s without a token in any "
            f"stream (limit {limit / 1e3:.1f} s)"
        )
    return found


def client_limits(summary: Summary, *, open_loop: bool) -> list[str]:
    """Signs that the load generator, not the server, was the limit."""
    found = []
    if (summary.client_cpu_share or 0.0) > CLIENT_CPU_LIMIT:
        found.append(
            f"the load generator took {summary.client_cpu_share:.0%} of a core "
            f"(limit {CLIENT_CPU_LIMIT:.0%}): use more --workers, or another machine for it"
        )
    lag = summary.client_lag_ms.get("p90", 0.0)
    if lag > LIMIT_MS:
        found.append(
            f"the load generator ran {lag:.1f} ms late in one look of ten (limit {LIMIT_MS:g} ms): "
            "it lacked the CPU to take times"
        )
    late = summary.late_ms.get("p90", 0.0)
    if open_loop and late > LATE_LIMIT_MS:
        found.append(
            f"one request in ten was sent {late:.0f} ms after it was due or later "
            f"(limit {LATE_LIMIT_MS:g} ms): the load was not the one asked for"
        )
    return found


def stall_limit_ms(summary: Summary) -> float:
    """A silence longer than this is a stall.

    A second, four median times to first token, or twenty median gaps, whichever is longest: a
    server that is merely slow is not taken for one that stopped.
    """
    return max(
        _STALL_MIN_MS,
        _STALL_TTFTS * summary.ttft_ms.get("p50", 0.0),
        _STALL_GAPS * summary.itl_ms.get("p50", 0.0),
    )
