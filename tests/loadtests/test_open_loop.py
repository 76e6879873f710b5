from __future__ import annotations

import itertools

import pytest

from loadtests.arrivals import poisson_arrivals
from loadtests.open_loop import OpenLoop, Share
from loadtests.trace import TraceRequest


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_requests_of_one_run(processes: int) -> None:
    loop = OpenLoop(5.0, [], seed=3, warmup=4, requests=20, seconds=None)
    shares = [Share(process, processes) for process in range(processes)]
    together = sorted(item for share in shares for item in loop.arrivals(share))
    due = itertools.islice(poisson_arrivals(5.0, 3), 20)
    assert together == list(zip(range(4, 24), due, strict=True))
    assert sorted(i for share in shares for i in loop.warmups(share)) == list(range(4))


def test_a_trace_says_when_and_seconds_end_it() -> None:
    trace = [TraceRequest(float(i), 1, 1) for i in range(10)]
    loop = OpenLoop(None, trace, seed=0, warmup=0, requests=None, seconds=2.5)
    assert list(loop.arrivals(Share())) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    whole = OpenLoop(None, trace, seed=0, warmup=0, requests=None, seconds=None)
    assert len(list(whole.arrivals(Share()))) == 10
