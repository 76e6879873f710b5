"""An arm of a benchmark in a process of its own, which is stopped while others have their turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil

from benchmarks.common.worker_protocol import ANSWER

_END_SECONDS = 60.0
_TAIL_BYTES = 4000


class ArmError(ChildProcessError):
    """An arm did not start, ended early, or does not answer as expected."""


class ArmProcess:
    """A process in a session of its own, so that signals reach all processes below it, too.

    Args:
        arm: its name in messages.
        command: what to run.
        environment: of the process; None for this one's.
        log: file for what it prints; None keeps it only for messages.
        talks: standard input and output are pipes, and it ends by itself when the former closes.
    """

    def __init__(
        self,
        arm: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        talks: bool = False,
    ) -> None:
        self.arm = arm
        self._log: IO[bytes] = (
            tempfile.TemporaryFile() if log is None else log.open("w+b")  # noqa: SIM115 (`end`)
        )
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else self._log,
                stderr=self._log,
                text=True,
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            raise

    def alive(self) -> psutil.Process:
        """The process.

        Raises:
            ArmError: it has ended.
        """
        if self._process.poll() is not None:
            raise self.ended()
        return psutil.Process(self._process.pid)

    def ended(self) -> ArmError:
        """That it has ended, with its exit code and the end of its log."""
        return ArmError(
            f"the {self.arm} arm ended with code {self._process.wait()}:\n{self.tail()}"
        )

    def wait(self, timeout_s: float) -> int:
        """Wait until it has ended; its exit code, negative for a signal.

        Raises:
            TimeoutExpired: it runs on.
        """
        return self._process.wait(timeout_s)

    def tail(self) -> str:
        """The end of what it printed."""
        descriptor = self._log.fileno()
        # Not `seek`: the process writes at the same position.
        begin = max(os.fstat(descriptor).st_size - _TAIL_BYTES, 0)
        return os.pread(descriptor, _TAIL_BYTES, begin).decode(errors="replace").strip()

    def stop(self) -> None:
        """Let nothing of it run: some libraries spin while they wait."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """End it, by force if it takes longer than a minute."""
        self.go_on()
        if self._process.stdin is None:
            self._process.terminate()
        else:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _signal(self, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, what)


class Worker(ArmProcess):
    """A process that answers commands (`benchmarks.common.worker_protocol`), stopped in between.

    A context manager: entering waits until it is ready.

    Attributes:
        ready: what it said then.

    Raises:
        ArmError: it ended.
    """

    def __init__(
        self, arm: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(arm, command, environment=environment, talks=True)
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            self.ready = self._read()
            self.stop()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def ask(self, command: str, argument: object = None) -> dict[str, Any]:
        """Let it carry out one command, and give its answer.

        Raises:
            ArmError: it ended.
        """
        assert self._process.stdin is not None
        self.go_on()
        try:
            self._process.stdin.write(json.dumps({command: argument}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.ended() from None
        answer = self._read()
        self.stop()
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return answer
        raise self.ended()
