from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.client import Load, run_load
from loadtests.client_calibration import Bias, CalibrationError, _get_json, bias
from loadtests.samples import RequestSample

Make = Callable[..., RequestSample]

# The server got the request 1 ms after it was sent, and sent 5 tokens 30 ms apart.
SENT = {"r-0": [100.001, 100.001, 100.031, 100.061, 100.091, 100.121]}


def _seen(make_sample: Make, *times: float) -> RequestSample:
    return make_sample(token_times_s=list(times), ttft_s=times[0])


def test_a_truthful_reader_passes(make_sample: Make) -> None:
    found = bias([_seen(make_sample, 0.002, 0.032, 0.062, 0.093, 0.122)], SENT)
    assert found.ttft_ms == pytest.approx(2.0)
    assert found.token_p90_ms == pytest.approx(1.6)
    assert found.gap_p90_ms == pytest.approx(1.0)
    found.check()


def test_a_reader_that_fills_blocks_is_refused(make_sample: Make) -> None:
    found = bias([_seen(make_sample, 0.122, 0.122, 0.122, 0.122, 0.122)], SENT)
    assert found.ttft_ms == pytest.approx(122.0)
    with pytest.raises(CalibrationError, match=r"122.0 ms on time to first token.*limit 5 ms"):
        found.check()


def test_a_late_first_token_alone_is_refused() -> None:
    with pytest.raises(CalibrationError, match="time to first token"):
        Bias(ttft_ms=5.1, token_p90_ms=0.1, gap_p90_ms=0.1).check()


def test_distorted_gaps_alone_are_refused() -> None:
    with pytest.raises(CalibrationError, match="gaps"):
        Bias(ttft_ms=1.0, token_p90_ms=1.0, gap_p90_ms=float("nan")).check()


def test_one_hiccup_of_the_machine_is_not_the_reader(make_sample: Make) -> None:
    calm = [0.002, 0.032, 0.062, 0.092, 0.122]
    late = [0.052, *calm[1:]]
    samples = [_seen(make_sample, *times) for times in (calm, late, calm, calm)]
    bias(samples, SENT).check()


def test_failures_and_merged_chunks_are_refused(make_sample: Make) -> None:
    with pytest.raises(CalibrationError, match="no request"):
        bias([], SENT)
    with pytest.raises(CalibrationError, match="HTTP 500"):
        bias([make_sample(error="HTTP 500")], SENT)
    with pytest.raises(CalibrationError, match="2 of 5 tokens: chunks were merged"):
        bias([_seen(make_sample, 0.06, 0.12)], SENT)
    with pytest.raises(CalibrationError, match="5 of 0 tokens"):
        bias([make_sample(request_id="unknown")], SENT)


def test_the_real_users_are_measured_against_the_real_server(server: str, tmp_path: Path) -> None:
    result = run_load(Load(host=server, requests=2, max_tokens=30), tmp_path, "run")
    found = bias(result.samples, _get_json(f"{server}/sent"))
    # No limit on a machine that others use; but nothing is seen before it was sent.
    assert found.ttft_ms > 0
    assert found.token_p90_ms > 0
