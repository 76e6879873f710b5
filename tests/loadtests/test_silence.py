from __future__ import annotations

from collections.abc import Callable

import pytest

from loadtests.samples import RequestSample
from loadtests.silence import longest_silence

Make = Callable[..., RequestSample]


def test_a_silence_counts_only_while_something_runs(make_sample: Make) -> None:
    # 50 ms to the first token and 10 ms gaps; a minute between the requests is nobody's fault.
    samples = [make_sample(), make_sample(started_at=160.0)]
    assert longest_silence(samples) == pytest.approx(0.05)
    assert longest_silence([]) == 0.0


def test_another_stream_breaks_a_silence(make_sample: Make) -> None:
    stalled = make_sample(token_times_s=[0.05, 3.05], e2e_s=3.05)
    assert longest_silence([stalled]) == pytest.approx(3.0)
    talks = make_sample(started_at=101.0, token_times_s=[0.1 * i for i in range(1, 30)], e2e_s=2.9)
    assert longest_silence([stalled, talks]) == pytest.approx(1.05)
