"""Finds stalls: times in which requests were running and no stream said anything."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.samples import RequestSample


def longest_silence(samples: Sequence[RequestSample]) -> float:
    """Seconds of the longest silence while at least one request was running; 0 without requests.

    A wait for a first token counts: a server that works on prompts alone is silent, too.
    """
    spans = sorted((s.started_at, s.started_at + last_offset(s)) for s in samples)
    signs = sorted(s.started_at + t for s in samples for t in s.token_times_s)
    longest, sign = 0.0, 0
    for begin, end in _united(spans):
        heard = begin
        while sign < len(signs) and signs[sign] <= end:
            longest = max(longest, signs[sign] - heard)
            heard = signs[sign]
            sign += 1
        longest = max(longest, end - heard)
    return longest


def last_offset(sample: RequestSample) -> float:
    """Seconds from the send to the last sign of life."""
    return max([sample.e2e_s or 0.0, *sample.token_times_s[-1:]])


def _united(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Sorted spans, those that overlap made one."""
    united: list[tuple[float, float]] = []
    for begin, end in spans:
        if united and begin <= united[-1][1]:
            united[-1] = united[-1][0], max(united[-1][1], end)
        else:
            united.append((begin, end))
    return united
