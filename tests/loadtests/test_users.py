"""The locust users, in a process of their own, against servers that behave and that do not."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from loadtests.arrivals import poisson_arrivals
from loadtests.client import Load, LoadError, run_load
from loadtests.client_calibration import free_port
from loadtests.samples import read_samples
from loadtests.summary import Summary
from loadtests.verdict import client_limits

ROOT = Path(__file__).parents[2]


def _start_locust(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    locustfile = str(ROOT / "loadtests" / "locustfile.py")
    command = [sys.executable, "-m", "locust", "-f", locustfile, "--headless", "--only-summary"]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _locust(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with _start_locust(folder, *arguments) as process:
        output, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


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


def test_workers_send_the_requests_of_one_run(server: str, tmp_path: Path) -> None:
    load = Load(
        host=server, rate=40.0, requests=12, warmup=3, max_tokens=6, seed=3, prompt_tokens=9
    )
    alone = run_load(load, tmp_path, "alone")
    many = run_load(dataclasses.replace(load, workers=2), tmp_path, "many")
    runs = [sorted(run.samples, key=lambda s: s.index) for run in (alone, many)]
    for samples in runs:
        assert [s.index for s in samples] == list(range(15))
        assert all(s.ok and s.prompt_tokens == 9 for s in samples), [s.error for s in samples]
        warm = [s.started_at + (s.e2e_s or 0) for s in samples if s.warmup]
        assert max(warm) <= min(s.started_at for s in samples if not s.warmup)
    first, second = ([s.prompt_id for s in samples] for samples in runs)
    assert first == second
    # The even ones come from one process, the odd ones from another; all are due as in one.
    senders = [s.request_id.partition("-")[0] for s in runs[1]]
    assert len(set(senders)) == 2
    assert len(set(senders[::2])) == len(set(senders[1::2])) == 1
    due = [[s.scheduled_at - samples[3].scheduled_at for s in samples[3:]] for samples in runs]
    assert due[0] == pytest.approx(due[1], abs=2e-3)
    assert many.summary.requests == 12
    assert many.summary.client_lag_ms


def test_a_worker_that_is_lost_fails_the_run(server: str, tmp_path: Path) -> None:
    arguments = ["CompletionUser", "-H", server, "--processes", "2", "--max-tokens", "400"]
    samples = tmp_path / "s.jsonl"
    rate = ("--rate", "4", "--requests", "60", "--samples", str(samples))
    with _start_locust(tmp_path, *arguments, *rate) as process:
        while not samples.is_file() or not samples.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        psutil.Process(process.pid).children()[0].kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "only 1 of 2 workers are left" in errors


def test_traces_are_sent_as_they_came(server: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [(0, 30, 5), (100, 8, 9), (300, 12, 3)]
    trace.write_text(
        "".join(
            json.dumps({"timestamp": t, "input_length": i, "output_length": o}) + "\n"
            for t, i, o in rows
        )
    )
    samples = run_load(Load(host=server, trace=trace, trace_speed=2.0), tmp_path, "run").samples
    samples.sort(key=lambda s: s.index)
    assert [(s.prompt_tokens, s.completion_tokens) for s in samples] == [(30, 5), (8, 9), (12, 3)]
    due = [s.scheduled_at - samples[0].scheduled_at for s in samples]
    assert due == pytest.approx([0.0, 0.05, 0.15], abs=1e-6)
    assert [s.prompt_id for s in samples] == ["trace-0", "trace-1", "trace-2"]


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
        (["--processes", "2"], "a closed loop is one process"),
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


BURNER = """
import time
import gevent
from locust import events

@events.test_start.add_listener
def burn(**_):
    def spin():
        while True:
            end = time.perf_counter() + 0.03
            while time.perf_counter() < end:
                pass
            gevent.sleep(0.001)
    gevent.spawn(spin)
"""


def test_a_client_out_of_cpu_is_seen(server: str, tmp_path: Path) -> None:
    (tmp_path / "burner.py").write_text(BURNER)
    both = f"{ROOT / 'loadtests/locustfile.py'},{tmp_path / 'burner.py'}"
    arguments = ["-f", both, "CompletionUser", "-H", server, "--rate", "20", "--requests", "20"]
    done = _locust(tmp_path, *arguments, "--max-tokens", "20", "--summary", "s.json")
    assert done.returncode == 0, done.stderr
    summary = Summary.read(tmp_path / "s.json")
    assert summary.failed == 0
    assert any("ran" in line and "late" in line for line in client_limits(summary, open_loop=True))
    assert summary.client_lag_ms["p50"] > 5
