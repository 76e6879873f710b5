"""The engine's thread: schedules, steps, and hands results to the event loop once per step."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from engines.base import GenerationChunk
from engines.cpu.runner import Delivery, Runner
from engines.cpu.scheduler import Scheduler
from engines.cpu.sequence import Sequence

_log = logging.getLogger(__name__)


class EngineLoop:
    """Owns the thread that alone touches scheduler, runner and native decoder.

    Other threads hand it work through `call`; what it produces reaches the event loop in one
    `call_soon_threadsafe` per step.

    Args:
        scheduler: holds the sequences.
        runner: executes steps.
        on_finish: called on the event loop for every sequence that ended.
        on_death: called on the event loop if the thread dies of an unexpected error.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        on_finish: Callable[[Sequence], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._on_finish = on_finish
        self._on_death = on_death
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._turned = time.monotonic()
        self._busy = False
        self._events: asyncio.AbstractEventLoop | None = None
        self._out: list[Delivery] = []
        self._thread = threading.Thread(target=self._run, name="cpu-engine", daemon=True)
        self._thread.start()

    def call(self, command: Callable[[], None]) -> None:
        """Run `command` on the engine's thread before its next step."""
        self._events = asyncio.get_running_loop()
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def add(self, sequences: list[Sequence]) -> None:
        """Queue the sequences of one request."""

        def queue() -> None:
            for sequence in sequences:
                self.scheduler.add(sequence)

        self.call(queue)

    def abort(self, request_id: str) -> None:
        """End what is left of a request before the next step."""
        self.call(lambda: self._abort(request_id))

    def seconds_since_turn(self) -> float:
        """How long ago the thread last came by while it had work; 0 when it has none."""
        return time.monotonic() - self._turned if self._busy or self._commands else 0.0

    def close(self) -> None:
        """Abort everything and end the thread; blocks until it has ended."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._drain()
                scheduled = self.scheduler.schedule()
                if scheduled:
                    self._out += self.runner.run(scheduled)
                self._flush()
            self._drain()
            for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
                self._end(sequence)
            self._flush()
        except BaseException as error:
            death = error  # `error` is gone when the callback runs
            _log.exception("the engine's thread died")
            self._post(lambda: self._on_death(death))

    def _wait(self) -> bool:
        with self._wake:
            while not (self._closing or self._commands or self._has_work()):
                self._busy = False
                self._wake.wait()
            self._turned = time.monotonic()
            self._busy = True
            return not self._closing

    def _has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    def _drain(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _abort(self, request_id: str) -> None:
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            if sequence.request_id == request_id:
                self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        chunk = GenerationChunk(sequence.index, sequence.text.flush(), (), finish_reason="abort")
        self._out.append((sequence, chunk))

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, []
            self._post(lambda: self._dispatch(out))

    def _post(self, callback: Callable[[], None]) -> None:
        if self._events is None:
            return
        try:
            self._events.call_soon_threadsafe(callback)
        except RuntimeError:  # the event loop is closed, and with it whoever was waiting
            _log.warning("the event loop closed before the engine did")

    def _dispatch(self, out: list[Delivery]) -> None:
        for sequence, chunk in out:
            if chunk.finish_reason is not None:
                self._on_finish(sequence)
            sequence.deliver(chunk)
