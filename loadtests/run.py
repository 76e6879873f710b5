"""The state that all users of one run share."""

from __future__ import annotations

import time
import uuid
from typing import Any

import requests

from loadtests.budget import RequestBudget
from loadtests.gate import violations
from loadtests.lag import LagWatch
from loadtests.options import LoadSettings
from loadtests.samples import RequestSample, SampleWriter
from loadtests.summary import Summary, summarise


class LoadRun:
    """Numbers for requests, the samples so far, and the load generator's own CPU time and lag.

    Raises:
        FileExistsError: the samples file is there already.
    """

    def __init__(self, settings: LoadSettings, base_model: str) -> None:
        self.settings = settings
        self.base_model = base_model
        self.id = uuid.uuid4().hex[:12]
        self.budget = RequestBudget(settings.warmup, settings.requests, settings.seconds)
        self.samples: list[RequestSample] = []
        self._writer = SampleWriter(settings.samples) if settings.samples else None
        self._cpu_from: tuple[float, float] | None = None
        self._cpu_to: tuple[float, float] = (0.0, 0.0)
        self._lag = LagWatch()

    def begin(self, index: int) -> None:
        """Request `index` is about to be sent."""
        if self._cpu_from is None and not self.budget.is_warmup(index):
            self._cpu_from = (time.process_time(), time.perf_counter())
            self._lag.start()

    def record(self, sample: RequestSample) -> None:
        """Keep the sample of a request that has ended."""
        self.samples.append(sample)
        self._cpu_to = (time.process_time(), time.perf_counter())
        if self._writer is not None:
            self._writer.write(sample)

    def finish(self) -> tuple[Summary, list[str]]:
        """Close the samples, write the summary, and say why the run must not pass, if so."""
        if self._writer is not None:
            self._writer.close()
        summary = summarise(
            self.samples, client_cpu_share=self._cpu_share(), client_lag_ms=self._lag.stop()
        )
        if self.settings.summary is not None:
            summary.write(self.settings.summary)
        share = self.settings.max_failure_share
        return summary, violations(summary, max_failure_share=share, slos=self.settings.slos)

    def _cpu_share(self) -> float | None:
        if self._cpu_from is None:
            return None
        wall = self._cpu_to[1] - self._cpu_from[1]
        return round((self._cpu_to[0] - self._cpu_from[0]) / wall, 4) if wall > 0 else None


def find_base_model(host: str, api_key: str | None) -> str:
    """The id of the server's base model: the first of /v1/models that has no parent.

    Raises:
        ValueError: the server does not answer as OpenAI's API does.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    url = f"{host.rstrip('/')}/v1/models"
    try:
        with requests.Session() as session:
            session.trust_env = False  # no proxy between the load and the server
            response = session.get(url, headers=headers, timeout=10)
        response.raise_for_status()
        models: list[dict[str, Any]] = response.json()["data"]
        return next(str(model["id"]) for model in models if not model.get("parent"))
    except (requests.RequestException, ValueError, KeyError, TypeError, StopIteration) as error:
        reason = "it lists no base model" if isinstance(error, StopIteration) else error
        raise ValueError(f"cannot ask {url} for the model: {reason}") from error
