"""Measures how much the load generator itself adds to the times it reports.

A server of this package streams tokens 30 ms apart and remembers when it sent each; the same locust
users that will measure the real server read them. A reader that fills blocks before it hands lines
over (Locust's `FastHttpUser`) adds more than 100 ms to the first token and reports most gaps as 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from loadtests.client import Load, run_load
from loadtests.samples import RequestSample

STREAMED_TOKENS = 30
GAP_MS = 30.0
LIMIT_MS = 5.0
_START_TIMEOUT_S = 30.0


class CalibrationError(RuntimeError):
    """The load generator distorts what it measures; nothing it says can be reported."""


@dataclass(frozen=True, slots=True)
class Bias:
    """What the load generator added, milliseconds.

    Attributes:
        ttft_ms: median over requests: time to first token beyond what the server took.
        token_p90_ms: 90th percentile over all tokens: sent by the server to seen by the client.
        gap_p90_ms: 90th percentile of |client's gap - server's gap|.
    """

    ttft_ms: float
    token_p90_ms: float
    gap_p90_ms: float

    def check(self, limit_ms: float = LIMIT_MS) -> None:
        """Accept the load generator.

        Raises:
            CalibrationError: any of the three exceeds the limit.
        """
        figures = {
            "time to first token": self.ttft_ms,
            "90 % of tokens": self.token_p90_ms,
            "90 % of gaps": self.gap_p90_ms,
        }
        over = [f"{v:.1f} ms on {name}" for name, v in figures.items() if not v <= limit_ms]
        if over:
            raise CalibrationError(
                f"the load generator adds {', '.join(over)} (limit {limit_ms:g} ms): "
                "end other work on this machine or lower the concurrency"
            )


def bias(samples: Sequence[RequestSample], sent: Mapping[str, Sequence[float]]) -> Bias:
    """Compare what a client saw with what the server did.

    Args:
        samples: measured requests; failed ones are an error.
        sent: request id -> clock when it arrived, then clock when each token was sent.

    Raises:
        CalibrationError: no sample, a failed one, or unlike numbers of tokens.
    """
    if not samples:
        raise CalibrationError("calibration measured no request")
    ttft, delays, gaps = [], [], []
    for sample in samples:
        arrived, *tokens = sent.get(sample.request_id, [0.0])
        if not sample.ok or len(tokens) != len(sample.token_times_s):
            raise CalibrationError(
                f"calibration request {sample.request_id} saw {len(sample.token_times_s)} of "
                f"{len(tokens)} tokens: {sample.error or 'chunks were merged'}"
            )
        seen = np.asarray(sample.token_times_s) + sample.started_at
        ttft.append(float(seen[0] - sample.started_at - (tokens[0] - arrived)))
        delays.append(seen - np.asarray(tokens))
        gaps.append(np.abs(np.diff(seen) - np.diff(tokens)))
    return Bias(
        ttft_ms=float(np.median(ttft)) * 1e3,
        token_p90_ms=float(np.percentile(np.concatenate(delays), 90)) * 1e3,
        gap_p90_ms=float(np.percentile(np.concatenate(gaps), 90)) * 1e3,
    )


def calibrate(folder: Path, concurrency: int = 1, *, rounds: int = 2) -> Bias:
    """Measure the load generator at `concurrency` streams; takes about 6 seconds.

    The caller decides by `Bias.check` whether to go on.

    Raises:
        CalibrationError: the fake server did not start, or a request failed.
        LoadError: locust could not run.
    """
    with fake_server() as host:
        load = Load(
            host=host,
            concurrency=concurrency,
            warmup=concurrency,
            requests=rounds * concurrency,
            max_tokens=STREAMED_TOKENS,
        )
        result = run_load(load, folder, "calibration", timeout_s=120.0)
        sent: dict[str, list[float]] = _get_json(f"{host}/sent")
    return bias([s for s in result.samples if not s.warmup], sent)


@contextmanager
def fake_server(gap_ms: float = GAP_MS) -> Iterator[str]:
    """A running `loadtests.fake_server`; gives its address.

    Raises:
        CalibrationError: it did not start.
    """
    port = free_port()
    host = f"http://127.0.0.1:{port}"
    arguments = ["-m", "loadtests.fake_server", "--port", str(port), "--gap-ms", str(gap_ms)]
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([sys.executable, *arguments], cwd=root)
    try:
        _wait_until_up(process, f"{host}/v1/models")
        yield host
    finally:
        process.terminate()
        process.wait(timeout=10)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise CalibrationError(f"the fake server ended with code {process.returncode}")
        try:
            _get_json(url)
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise CalibrationError(f"the fake server did not answer within {_START_TIMEOUT_S:g} s")


def _get_json(url: str) -> Any:
    # A proxy that the environment names must not stand between this machine and itself.
    return httpx.get(url, timeout=5, trust_env=False).raise_for_status().json()


def main() -> None:
    """Print the bias at each concurrency as JSON; exit code 1 when any exceeds the limit."""
    parser = argparse.ArgumentParser(description="Measure what the load generator itself adds.")
    parser.add_argument("--concurrency", default="1,8", help="Streams, separated by commas")
    levels = [int(part) for part in parser.parse_args().concurrency.split(",")]
    refused = False
    for level in levels:
        with tempfile.TemporaryDirectory() as folder:
            found = calibrate(Path(folder), level)
        row = {"concurrency": level} | dataclasses.asdict(found)
        sys.stdout.write(json.dumps({k: round(v, 3) for k, v in row.items()}) + "\n")
        try:
            found.check()
        except CalibrationError as error:
            sys.stderr.write(f"{error}\n")
            refused = True
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
