"""The driver's end of an arm of `benchmarks.vllm.speed`: a process stopped between its turns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

from benchmarks.vllm.worker import ANSWER

_END_SECONDS = 60.0


class ArmProcess:
    """vLLM on one model; a context manager that starts and ends it.

    Args:
        job: see `benchmarks.vllm.worker`.
        environment: of the process.

    Attributes:
        ready: what it said when vLLM had started.

    Raises:
        RuntimeError: it ended; the message has the end of its log.
    """

    def __init__(self, job: dict[str, Any], environment: dict[str, str]) -> None:
        self._job = job
        self._environment = environment
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.vllm.worker", json.dumps(self._job)],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        try:
            self.ready = self._answer()
            self._signal(signal.SIGSTOP)
        except BaseException:
            self._end()
            raise
        return self

    def turn(self, batch: int) -> dict[str, Any]:
        """Let it generate one batch while all others are stopped."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{batch}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                found: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return found
        self._process.wait()
        self._log.seek(0)
        raise RuntimeError(f"{self._job['model']} failed:\n{self._log.read()[-4000:]}")

    def _end(self) -> None:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()  # it then ends by itself, and vLLM removes its shared memory
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)  # vLLM's own processes are in the group
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _signal(self, what: signal.Signals) -> None:
        """Send it to the process and vLLM's processes below it."""
        try:
            os.killpg(self._process.pid, what)
        except ProcessLookupError:
            return
