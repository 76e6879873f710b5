"""Several processes for one open loop: locust's master and workers, and what they tell each other.

Each worker sends its share of the requests and their samples to the master, which writes them. The
measured part begins at one moment everywhere, when the last worker has ended its warm-up.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import gevent
from gevent.event import AsyncResult
from locust.runners import MasterRunner, WorkerRunner

from loadtests.open_loop import Share
from loadtests.run import ClientLoad, LoadRun, SampleLog
from loadtests.samples import RequestSample, sample_of

_WARM, _GO, _SAMPLE, _END = "load_warm", "load_go", "load_sample", "load_end"
_HEAD_START_S = 0.3  # until every worker has heard of the start
_WATCH_S = 0.1
_SAME_CLOCK_S = 1.0


class WorkerSide:
    """What a worker tells its master."""

    def __init__(self, runner: WorkerRunner) -> None:
        self._runner = runner
        self._go: AsyncResult = AsyncResult()
        self._sent = 0
        self.clock_shift_s = 0.0
        runner.register_message(_GO, lambda environment, msg, **_: self._go.set(msg.data))

    def share(self, workers: int) -> Share:
        """Which requests this worker sends."""
        return Share(self._runner.worker_index, workers)

    def keep(self, sample: RequestSample) -> None:
        """Send a sample to the master, by the master's clock."""
        shifted = dataclasses.replace(
            sample,
            scheduled_at=sample.scheduled_at + self.clock_shift_s,
            started_at=sample.started_at + self.clock_shift_s,
        )
        self._runner.send_message(_SAMPLE, {"line": shifted.to_json()})
        self._sent += 1

    def start(self) -> float:
        """Tell that the warm-up is over, and wait; gives the start by this machine's clock."""
        self._runner.send_message(_WARM, {})
        go = self._go.get()
        own = _unix_minus_clock()
        # On another machine the monotonic clock began elsewhere; wall clocks join the two.
        shift = own - go["unix_minus_clock"]
        self.clock_shift_s = shift if abs(shift) > _SAME_CLOCK_S else 0.0
        return float(go["start_unix"]) - own

    def end(self, run: LoadRun) -> None:
        """Tell that every request has ended, and how busy this process was."""
        load = dataclasses.asdict(run.client_load())
        self._runner.send_message(_END, load | {"samples": self._sent})


class MasterSide:
    """What a master knows of its workers.

    Attributes:
        clients: how busy each worker was, once it has ended.
        lost: why the run must not count: workers that went away, or their samples.
    """

    def __init__(self, runner: MasterRunner, workers: int, log: SampleLog) -> None:
        self._runner = runner
        self._workers = workers
        self._log = log
        self._warm: set[str] = set()
        self._received: dict[str, int] = {}
        self._ends: dict[str, ClientLoad] = {}
        self.lost: list[str] = []
        for name, listener in ((_WARM, self._on_warm), (_SAMPLE, self._on_sample)):
            runner.register_message(name, listener)
        runner.register_message(_END, self._on_end)

    @property
    def clients(self) -> list[ClientLoad]:
        """How busy each worker that has ended was."""
        return list(self._ends.values())

    def watch(self) -> None:
        """Wait until every worker has ended, or one is gone; then end the run."""
        while len(self._ends) < self._workers and not self.lost:
            gevent.sleep(_WATCH_S)
            alive = {c.id for c in self._runner.clients.all if c.state != "missing"}
            if len(alive | self._ends.keys()) < self._workers:
                self.lost.append(
                    f"only {len(alive)} of {self._workers} workers are left: what the others sent "
                    "is incomplete"
                )
        self._runner.quit()

    def _on_warm(self, environment: Any, msg: Any, **_: Any) -> None:
        self._warm.add(msg.node_id)
        if len(self._warm) == self._workers:
            start = {
                "start_unix": time.time() + _HEAD_START_S,
                "unix_minus_clock": _unix_minus_clock(),
            }
            self._runner.send_message(_GO, start)

    def _on_sample(self, environment: Any, msg: Any, **_: Any) -> None:
        self._log.keep(sample_of(msg.data["line"], f"worker {msg.node_id}"))
        self._received[msg.node_id] = self._received.get(msg.node_id, 0) + 1

    def _on_end(self, environment: Any, msg: Any, **_: Any) -> None:
        told, received = msg.data["samples"], self._received.get(msg.node_id, 0)
        if told != received:
            self.lost.append(f"a worker sent {told} samples, {received} came")
        self._ends[msg.node_id] = ClientLoad(msg.data["cpu_share"], msg.data["lag_ms"])


def _unix_minus_clock() -> float:
    return time.time() - time.perf_counter()
