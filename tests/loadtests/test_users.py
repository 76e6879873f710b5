"""The locust users, in a process of their own, against servers that behave and that do not."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.arrivals import poisson_arrivals
from loadtests.calibration import free_port
from loadtests.client import Load, LoadError, run_load
from loadtests.samples import read_samples
from loadtests.summary import Summary

ROOT = Path(__file__).parents[2]


def _locust(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    locustfile = ROOT / "loadtests" / "locustfile.py"
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(locustfile),
        "--headless",
        "--only-summary",
    ]
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_closed_loop(server: str, tmp_path: Path, endpoint: str) -> None:
    load = Load(
        host=server, concurrency=3, warmup=3, requests=6, max_tokens=9, endpoint=endpoint, seed=4
    )
    result = run_load(load, tmp_path, "run")
    summary = result.summary
    assert (summary.requests, summary.failed, summary.output_tokens) == (6, 0, 54)
    assert sorted(sample.index for sample in result.samples) == list(range(9))
    assert sum(sample.warmup for sample in result.samples) == 3
    warm = [s.started_at + (s.e2e_s or 0) for s in result.samples if s.warmup]
    assert max(warm) <= min(s.started_at for s in result.samples if not s.warmup)
    for sample in result.samples:
        assert sample.status == 200
        assert len(sample.token_times_s) == sample.completion_tokens == 9
        assert sample.token_times_s == sorted(sample.token_times_s)
        assert endpoint in sample.endpoint
    assert summary.client_cpu_share is not None


def test_open_loop_does_not_wait_for_answers(server: str, tmp_path: Path) -> None:
    # 60 tokens at 2 ms take 120 ms each; at 50 arrivals a second several must overlap.
    load = Load(host=server, rate=50.0, requests=12, max_tokens=60, seed=3)
    samples = sorted(run_load(load, tmp_path, "run").samples, key=lambda s: s.index)
    due = list(itertools.islice(poisson_arrivals(50.0, 3), 12))
    start = samples[0].scheduled_at - due[0]
    assert [s.scheduled_at - start for s in samples] == pytest.approx(due, abs=1e-6)
    assert all(s.started_at >= s.scheduled_at for s in samples)
    ends = [s.started_at + (s.e2e_s or 0) for s in samples]
    assert any(later.started_at < end for end, later in zip(ends, samples[1:], strict=False))


def test_every_fault_is_a_failed_sample_with_its_reason(faulty: str, tmp_path: Path) -> None:
    reasons = {
        "busy": "HTTP 429",
        "malformed": "chunk is not JSON",
        "error": "server error in the stream: the engine died",
        "cut": "without [DONE]",
        "short": "generated 1 tokens, not 6 (finish reason stop)",
        "uncounted": "no usage",
        "endless": "without [DONE]",
        "unchunked": "not chunked",
        "fine": "",
    }
    mix = f"uniform:{','.join(reasons)}"
    load = Load(host=faulty, concurrency=2, requests=60, max_tokens=6, mask_mix=mix)
    result = run_load(load, tmp_path, "run")
    assert {sample.mask for sample in result.samples} == set(reasons)
    for sample in result.samples:
        assert reasons[sample.mask or ""] in (sample.error or "")
        assert (sample.error is None) == (sample.mask == "fine")
    fine = sum(sample.mask == "fine" for sample in result.samples)
    assert result.summary.failed == 60 - fine
    assert result.summary.output_tokens == 6 * fine


def test_a_server_that_dies_fails_the_run_and_ends_it(faulty: str, tmp_path: Path) -> None:
    load = Load(host=faulty, requests=4, max_tokens=6, mask_mix="one:exit")
    result = run_load(load, tmp_path, "run")
    assert result.summary.failed == 4
    errors = [sample.error or "" for sample in result.samples]
    assert "without [DONE]" in errors[0] or "Connection" in errors[0]
    assert "ConnectionRefusedError" in errors[-1]


def test_no_server_at_all_is_an_error(tmp_path: Path) -> None:
    host = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(LoadError, match=r"(?s)code 2.*cannot ask http"):
        run_load(Load(host=host, requests=1), tmp_path, "run")


def test_a_missed_objective_is_exit_code_1(server: str, tmp_path: Path) -> None:
    arguments = ["CompletionUser", "-H", server, "--requests", "2", "--max-tokens", "4"]
    missed = _locust(tmp_path, *arguments, "--slo", "e2e_p50=0.01", "--samples", "a.jsonl")
    assert missed.returncode == 1
    assert "failed: e2e p50 is" in missed.stderr
    met = _locust(tmp_path, *arguments, "--slo", "e2e_p50=60000", "--summary", "b.json")
    assert met.returncode == 0, met.stderr
    assert "ITL" in met.stdout + met.stderr
    assert len(read_samples(tmp_path / "a.jsonl")) == 2
    assert Summary.read(tmp_path / "b.json").failed == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask-mix", "some"], "mask mix"),
        (["--prompts", "missing.txt"], "missing.txt"),
        (["--processes", "2"], "one run is one process"),
    ],
)
def test_what_cannot_run_is_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = _locust(tmp_path, "CompletionUser", "-H", "http://127.0.0.1:1", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_shapes_change_the_number_of_users(server: str, tmp_path: Path) -> None:
    both = f"{ROOT / 'loadtests/locustfile.py'},{ROOT / 'loadtests/shapes/spike.py'}"
    done = _locust(
        tmp_path,
        *("-f", both, "CompletionUser", "-H", server, "--max-tokens", "20"),
        *("--stretch-seconds", "1", "--spike-users", "4", "--samples", "s.jsonl"),
        *("--max-failure-share", "1"),
    )
    assert done.returncode == 0, done.stderr
    samples = read_samples(tmp_path / "s.jsonl")
    spans = [(s.started_at, s.started_at + (s.e2e_s or 0)) for s in samples if s.ok]
    together = max(sum(a <= start < b for a, b in spans) for start, _ in spans)
    assert together == 4
