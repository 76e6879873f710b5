"""The state that all users of one process share, and what becomes of their samples."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from loadtests.lag import LagWatch
from loadtests.objectives import violations
from loadtests.open_loop import Share
from loadtests.options import LoadSettings
from loadtests.prompt_source import PromptSource
from loadtests.request_budget import RequestBudget
from loadtests.samples import RequestSample, SampleWriter
from loadtests.summary import Percentiles, Summary, summarise


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """How busy one process of the load generator was.

    Attributes:
        cpu_share: CPU time / wall time; None without a measured request.
        lag_ms: how late it woke up.
    """

    cpu_share: float | None
    lag_ms: Percentiles


class LoadRun:
    """Numbers for requests, and the load generator's own CPU time and lag.

    Args:
        settings: what to send.
        source: what requests say.
        base_model: `model` of requests, without a mask.
        keep: gets every sample.
        share: which requests of an open loop this process sends.
    """

    def __init__(
        self,
        settings: LoadSettings,
        source: PromptSource,
        base_model: str,
        keep: Callable[[RequestSample], None],
        share: Share | None = None,
    ) -> None:
        self.settings = settings
        self.source = source
        self.base_model = base_model
        self.share = share or Share()
        self.id = uuid.uuid4().hex[:12]
        self.clock_shift_s = 0.0
        self.budget = RequestBudget(settings.warmup, settings.requests, settings.seconds)
        self._dispatched = False
        self._keep = keep
        self._cpu_from: tuple[float, float] | None = None
        self._cpu_to: tuple[float, float] = (0.0, 0.0)
        self._lag = LagWatch()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to send and every request has ended."""
        return self.budget.finished if self.settings.open_loop is None else self._dispatched

    def dispatched(self) -> None:
        """The open loop of this process is over."""
        self._dispatched = True

    def begin(self, index: int) -> None:
        """Request `index` is about to be sent."""
        if self._cpu_from is None and not self.budget.is_warmup(index):
            self._cpu_from = (time.process_time(), time.perf_counter())
            self._lag.start()

    def record(self, sample: RequestSample) -> None:
        """Keep the sample of a request that has ended."""
        self._cpu_to = (time.process_time(), time.perf_counter())
        self._keep(sample)
        self.budget.end(sample.index)

    def client_load(self) -> ClientLoad:
        """How busy this process was; ends the watch on its lag."""
        return ClientLoad(self._cpu_share(), self._lag.stop())

    def _cpu_share(self) -> float | None:
        if self._cpu_from is None:
            return None
        wall = self._cpu_to[1] - self._cpu_from[1]
        return round((self._cpu_to[0] - self._cpu_from[0]) / wall, 4) if wall > 0 else None


class SampleLog:
    """All samples of a run, in one file and in order of their end.

    Raises:
        FileExistsError: the samples file is there already.
    """

    def __init__(self, settings: LoadSettings) -> None:
        self._settings = settings
        self.samples: list[RequestSample] = []
        self._writer = SampleWriter(settings.samples) if settings.samples else None

    def keep(self, sample: RequestSample) -> None:
        """Append one."""
        self.samples.append(sample)
        if self._writer is not None:
            self._writer.write(sample)

    def finish(self, clients: list[ClientLoad]) -> tuple[Summary, list[str]]:
        """Close the file, write the summary, and say why the run must not pass, if so.

        Args:
            clients: how busy each process was; the busiest counts.
        """
        if self._writer is not None:
            self._writer.close()
        settings = self._settings
        shares = [client.cpu_share for client in clients if client.cpu_share is not None]
        summary = summarise(
            self.samples,
            client_cpu_share=max(shares, default=None),
            client_lag_ms=max(
                (client.lag_ms for client in clients),
                key=lambda lag: lag.get("p90", 0.0),
                default=None,
            ),
        )
        if settings.summary is not None:
            summary.write(settings.summary)
        share = settings.max_failure_share
        return summary, violations(summary, max_failure_share=share, slos=settings.slos)
