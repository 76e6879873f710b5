"""A real `twofour serve` process, and what it says about itself."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common.arm_process import ArmError, ArmProcess
from benchmarks.common.machine import process_seconds
from loadtests.client_calibration import free_port

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What a server ran and how much memory it took.

    Attributes:
        arm: its name in the comparison.
        directory: the engine directory.
        base_digest: digest of the model's tensors.
        isa: instruction set of its kernels.
        layout: sparse layout, None when no layer is sparse.
        sparse_layers: layers that ran a sparse kernel.
        eligible_layers: layers that the mask lists.
        kernels: layer shape -> kernel.
        weight_bytes: bytes of its resident weights.
        rss_bytes: VmRSS of the process after it was measured.
        generated_tokens: tokens that the engine itself counted.
    """

    arm: str
    directory: str
    base_digest: str
    isa: str
    layout: str | None
    sparse_layers: int
    eligible_layers: int
    kernels: dict[str, str]
    weight_bytes: int
    rss_bytes: int
    generated_tokens: int

    @property
    def sparse_share(self) -> float:
        """Share of the eligible layers that ran a sparse kernel, 0 to 1."""
        return self.sparse_layers / self.eligible_layers if self.eligible_layers else 0.0


def serve_command(directory: Path, port: str, *options: str) -> list[str]:
    """The command that serves an engine directory on a port of the loopback interface."""
    command = [sys.executable, "-m", "twofour.cli", "serve", str(directory)]
    return [*command, "--host", "127.0.0.1", "--port", port, *options]


class Server:
    """Serves an engine directory on a free port of the loopback interface until its `with` ends.

    It does not wait for the process that it starts: see `wait_until_healthy`.

    Args:
        arm: its name in messages.
        directory: engine directory.
        log: where its output goes.
        threads: OpenMP threads; None leaves it to the machine.
        options: further ones of `twofour serve`.
        port: to listen on; None for a free one.
        wrapper: words before the command, which run it.
        start_timeout_s: what `wait_until_healthy` waits for at most, seconds.
    """

    def __init__(
        self,
        arm: str,
        directory: Path,
        log: Path,
        *,
        threads: int | None = None,
        options: Sequence[str] = (),
        port: int | None = None,
        wrapper: Sequence[str] = (),
        start_timeout_s: float = 120.0,
    ) -> None:
        self.arm = arm
        self.directory = directory
        self.url = f"http://127.0.0.1:{port or free_port()}"
        self._start_timeout_s = start_timeout_s
        # A key in the environment is for a server that faces others.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SERVING_")}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = serve_command(directory.resolve(), self.url.rpartition(":")[2], *options)
        self._process = ArmProcess(arm, [*wrapper, *command], environment=environment, log=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.end()

    def wait_until_healthy(self) -> None:
        """Wait for `/health`.

        Raises:
            ArmError: the process ended or took too long; with the end of its log.
        """
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            self._process.alive()
            try:
                self._get("/health")
                return
            except ArmError:
                time.sleep(_POLL_S)
        raise ArmError(
            f"the {self.arm} server was not healthy within {self._start_timeout_s:g} s:\n"
            f"{self._process.tail()}"
        )

    def process(self) -> psutil.Process:
        """The process.

        Raises:
            ArmError: it has ended.
        """
        return self._process.alive()

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait until it has ended; its exit code, negative for a signal.

        Raises:
            TimeoutExpired: it runs on.
        """
        return self._process.wait(timeout_s)

    def tail(self) -> str:
        """The end of what it printed."""
        return self._process.tail()

    def stop(self) -> None:
        """Let nothing of it run, until `go_on`."""
        self._process.stop()

    def go_on(self) -> None:
        """Let it run again."""
        self._process.go_on()

    def engine(self) -> dict[str, Any]:
        """The `engine` part of `/version`."""
        found: dict[str, Any] = json.loads(self._get("/version"))["engine"]
        return found

    def complete(self, model: str, prompt: str, *, max_tokens: int) -> str:
        """The greedy continuation of `prompt` by `model`, which names a mask or not."""
        fields = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        answer = json.loads(self._body("POST", "/v1/completions", json=fields))
        text: str = answer["choices"][0]["text"]
        return text

    def metric(self, name: str) -> float:
        """The value of a metric of `/metrics` that has one series."""
        for family in text_string_to_metric_families(self._get("/metrics").decode()):
            for sample in family.samples:
                if sample.name == name:
                    return float(sample.value)
        raise ArmError(f"the {self.arm} server has no metric {name}")

    def cpu_seconds(self) -> float:
        """CPU time of the process so far."""
        return process_seconds(self._process.alive())

    def report(self) -> ServerReport:
        """What it is and what it did so far.

        Raises:
            ArmError: the process has ended, or `/version` and `/metrics` disagree about the
                kernels.
        """
        self._process.alive()
        engine = self.engine()
        for name in ("sparse_layers", "eligible_layers"):
            if self.metric(f"twofour:{name}") != engine[name]:
                raise ArmError(f"the {self.arm} server contradicts itself about {name}")
        return ServerReport(
            arm=self.arm,
            directory=str(self.directory),
            base_digest=engine["base_digest"],
            isa=engine["isa"],
            layout=engine["layout"],
            sparse_layers=engine["sparse_layers"],
            eligible_layers=engine["eligible_layers"],
            kernels=engine["kernels"],
            weight_bytes=engine["weight_bytes"],
            rss_bytes=self._process.alive().memory_info().rss,
            generated_tokens=int(self.metric("twofour:generation_tokens_total")),
        )

    def _get(self, path: str) -> bytes:
        return self._body("GET", path)

    def _body(self, method: str, path: str, **options: Any) -> bytes:
        try:
            answer = httpx.request(
                method, self.url + path, timeout=10, trust_env=False, **options
            ).raise_for_status()
        except httpx.HTTPError as error:
            raise ArmError(f"the {self.arm} server does not answer {path}: {error}") from error
        return answer.content
