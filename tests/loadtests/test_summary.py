from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.objectives import Slo, violations
from loadtests.samples import RequestSample
from loadtests.summary import Summary, summarise

Make = Callable[..., RequestSample]


def test_statistics_of_known_samples(make_sample: Make) -> None:
    samples = [
        make_sample(index=0, warmup=True, started_at=0.0, ttft_s=9.0),
        make_sample(index=1, started_at=100.0, scheduled_at=99.9, ttft_s=0.05, mask="a"),
        make_sample(index=2, started_at=100.1, scheduled_at=100.1, ttft_s=0.03, cached_tokens=4),
        make_sample(index=3, started_at=100.05, scheduled_at=100.05, error="HTTP 429", e2e_s=None),
    ]
    summary = summarise(samples, client_cpu_share=0.5)
    assert (summary.requests, summary.failed) == (3, 1)
    assert summary.errors == {"HTTP 429": 1}
    assert summary.wall_s == pytest.approx(0.19)
    assert summary.output_tokens == 10
    assert summary.tokens_per_s == pytest.approx(10 / 0.19)
    assert summary.ttft_ms["p50"] == pytest.approx(40.0)
    assert summary.ttft_ms["p90"] == pytest.approx(48.0)
    assert summary.tpot_ms["p50"] == pytest.approx(12.5)
    assert summary.itl_ms["p99"] == pytest.approx(10.0)
    assert summary.late_ms["p50"] == pytest.approx(0.0)
    assert summary.late_ms["p99"] == pytest.approx(98.0)
    assert summary.masks == {"a": 1, "-": 2}
    assert summary.cached_prompt_tokens == 4
    assert summary.client_cpu_share == 0.5


def test_nothing_measured_has_no_latencies() -> None:
    summary = summarise([])
    assert summary.requests == 0
    assert summary.tokens_per_s == 0.0
    assert summary.ttft_ms == {}


def test_summary_round_trips(make_sample: Make, tmp_path: Path) -> None:
    summary = summarise([make_sample()])
    summary.write(tmp_path / "s.json")
    assert Summary.read(tmp_path / "s.json") == summary
    assert list(tmp_path.iterdir()) == [tmp_path / "s.json"]


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("ttft_p50=50", True),
        ("ttft_p99=49.9", False),
        ("tpot_p90=10.1", True),
        ("itl_p50=9", False),
        ("e2e_p99=90.1", True),
    ],
)
def test_objectives_bound_percentiles(make_sample: Make, text: str, passes: bool) -> None:
    summary = summarise([make_sample()])
    found = violations(summary, max_failure_share=0.0, slos=[Slo.parse(text)])
    assert (not found) == passes


@pytest.mark.parametrize("text", ["", "ttft=5", "ttft_p94=5", "speed_p50=5", "ttft_p50=-1"])
def test_unknown_objectives_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected METRIC_pP=MILLISECONDS"):
        Slo.parse(text)


def test_failures_above_the_share_do_not_pass(make_sample: Make) -> None:
    summary = summarise([make_sample(), make_sample(error="HTTP 500"), make_sample()])
    assert violations(summary, max_failure_share=0.34, slos=[]) == []
    (reason,) = violations(summary, max_failure_share=0.33, slos=[])
    assert "1 of 3" in reason
    assert "HTTP 500" in reason


def test_an_empty_run_never_passes() -> None:
    assert violations(summarise([]), max_failure_share=1.0, slos=[])


def test_an_objective_without_measurements_does_not_pass(make_sample: Make) -> None:
    summary = summarise([make_sample(error="x")])
    assert violations(summary, max_failure_share=1.0, slos=[Slo.parse("ttft_p50=1000")])
