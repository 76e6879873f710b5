"""A fake server in a process of its own, and samples to reckon with."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.client_calibration import fake_server, free_port
from loadtests.samples import RequestSample

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a server that streams a token every 2 ms."""
    with fake_server(gap_ms=2.0) as host:
        yield host


@pytest.fixture
def faulty() -> Iterator[str]:
    """Address of a server that misbehaves as the request's mask says."""
    port = free_port()
    script = ROOT / "tests" / "loadtests" / "faulty_server.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(port)], env={"PYTHONPATH": str(ROOT)}
    )
    host = f"http://127.0.0.1:{port}"
    try:
        _wait(host)
        yield host
    finally:
        process.kill()
        process.wait()


def _wait(host: str) -> None:
    for _ in range(600):
        try:
            httpx.get(f"{host}/v1/models", timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError(host)


@pytest.fixture
def make_sample() -> Callable[..., RequestSample]:
    """A successful request of 5 tokens, 10 ms apart, 50 ms to the first; fields can be changed."""

    def make(**changed: Any) -> RequestSample:
        fields: dict[str, Any] = {
            "request_id": "r-0",
            "index": 0,
            "warmup": False,
            "endpoint": "/v1/completions",
            "model": "m",
            "mask": None,
            "prompt_id": "p",
            "scheduled_at": 100.0,
            "started_at": 100.0,
            "started_unix": 1.8e9,
            "ttft_s": 0.05,
            "e2e_s": 0.09,
            "requested_tokens": 5,
            "token_times_s": [0.05, 0.06, 0.07, 0.08, 0.09],
            "prompt_tokens": 7,
            "completion_tokens": 5,
            "cached_tokens": 0,
            "status": 200,
            "finish_reason": "length",
        }
        return RequestSample(**(fields | changed))

    return make
