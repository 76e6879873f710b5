"""Locust users that stream completions and time every token."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from http.client import HTTPException, HTTPResponse
from typing import Any

import gevent
from gevent.pool import Group
from locust import User, constant
from locust.exception import StopUser

from loadtests.connection import Connection, lines
from loadtests.open_loop import OpenLoop
from loadtests.request import CHAT, COMPLETIONS, PreparedRequest, prepare
from loadtests.run import LoadRun
from loadtests.samples import RequestSample, judge
from loadtests.stream import StreamError, StreamRecord, read_stream

_PAUSE_AFTER_FAILURE_S = 0.1  # a dead server must not become a busy loop


class StreamingUser(User):  # type: ignore[misc]  # locust is not typed here
    """Sends one streamed request after another (closed loop), or dispatches them when due (open).

    In an open loop there is one user in a process: it starts every request of the process's share
    when it is due, in a greenlet of its own, however many are still running.
    """

    abstract = True
    endpoint = COMPLETIONS
    wait_time = constant(0)

    def on_start(self) -> None:
        """Called by locust when the user starts."""
        self._idle: list[Connection] = []

    def turn(self) -> None:
        """What a user does over and over."""
        run: LoadRun = self.environment.load_run
        loop = run.settings.open_loop
        if loop is None:
            self._next_request(run)
        else:
            self._dispatch(run, loop)

    tasks = [turn]  # noqa: RUF012  # how locust declares tasks

    def _next_request(self, run: LoadRun) -> None:
        index = run.budget.take()
        if index is None:
            raise StopUser
        sample = self._send(run, index, time.perf_counter())
        if not sample.ok:
            gevent.sleep(_PAUSE_AFTER_FAILURE_S)

    def _dispatch(self, run: LoadRun, loop: OpenLoop) -> None:
        for index in loop.warmups(run.share):
            self._send(run, index, time.perf_counter())
        start = self.environment.load_start()
        running = Group()
        try:
            for index, offset in loop.arrivals(run.share):
                due = start + offset
                gevent.sleep(max(0.0, due - time.perf_counter()))
                running.spawn(self._send, run, index, due)
            running.join()
        finally:
            running.kill()
        run.dispatched()
        raise StopUser

    def _send(self, run: LoadRun, index: int, due: float) -> RequestSample:
        """Send request `index`, read its stream, keep its sample."""
        request = prepare(run.settings, run.source, run.base_model, self.endpoint, index, run.id)
        record = StreamRecord()
        connection = self._connection(run)
        run.begin(index)
        started_unix, started = time.time(), time.perf_counter()
        status, error = 0, "unfinished: the run was stopped first"
        try:
            status, error = _exchange(connection, request, record)
        finally:
            # Also when the greenlet is killed: a request that was sent leaves a sample.
            sample = _sample(run, request, index, record, (due, started, started_unix))
            sample = dataclasses.replace(
                sample, status=status, error=error or judge(sample, request.prompt_tokens) or None
            )
            run.record(sample)
        self._idle.append(connection)
        self._fire(sample)
        return sample

    def _connection(self, run: LoadRun) -> Connection:
        if self._idle:
            return self._idle.pop()
        return Connection(self.environment.host, run.settings.timeout_s)

    def _fire(self, sample: RequestSample) -> None:
        """Tell locust: a row for the whole request (E2E), one for its TTFT, one for its TPOT.

        ITL rows are many: `fire_gaps` sends them after the run, so that other streams, which share
        this thread, need not wait for locust's bookkeeping.
        """
        name = f"{sample.endpoint} (warm-up)" if sample.warmup else sample.endpoint
        fire_row(self.environment, "POST", name, sample.e2e_s or 0.0, sample.error)
        if sample.warmup or not sample.ok:
            return
        for kind, seconds in (("TTFT", sample.ttft_s), ("TPOT", sample.tpot_s)):
            if seconds is not None:
                fire_row(self.environment, kind, sample.endpoint, seconds)


class CompletionUser(StreamingUser):
    """Streams from /v1/completions."""

    endpoint = COMPLETIONS


class ChatUser(StreamingUser):
    """Streams from /v1/chat/completions."""

    endpoint = CHAT


def fire_gaps(environment: Any, samples: Iterable[RequestSample]) -> None:
    """Tell locust every inter-token latency of a run that has ended."""
    for sample in samples:
        if sample.ok and not sample.warmup:
            for gap in sample.gaps_s:
                fire_row(environment, "ITL", sample.endpoint, gap)


def fire_row(
    environment: Any, kind: str, name: str, seconds: float, error: str | None = None
) -> None:
    """Add one measurement to locust's statistics."""
    environment.events.request.fire(
        request_type=kind,
        name=name,
        response_time=seconds * 1e3,
        response_length=0,
        exception=StreamError(error) if error else None,
        context={},
    )


def _exchange(
    connection: Connection, request: PreparedRequest, record: StreamRecord
) -> tuple[int, str]:
    """Status and error of one exchange; the error is empty when the stream was whole."""
    status = 0
    try:
        response = connection.post(request.endpoint, request.body, request.headers)
        status = response.status
        error = _read(response, record)
        connection.finished(reusable=not error)
    except (OSError, HTTPException) as broken:
        connection.close()
        error = f"{type(broken).__name__}: {broken}"[:300]
    except BaseException:
        connection.close()  # killed in mid-stream: the rest of it must not meet the next request
        raise
    return status, error


def _read(response: HTTPResponse, record: StreamRecord) -> str:
    """Read a response; the error it holds, empty when there is none."""
    if response.status != 200:
        return f"HTTP {response.status}: {response.read(2000).decode(errors='replace')[:200]}"
    if response.getheader("Transfer-Encoding", "").lower() != "chunked":
        return "the response is not chunked: its arrival times could not be trusted"
    try:
        read_stream(lines(response), record, time.perf_counter)
    except StreamError as error:
        return str(error)
    return ""


def _sample(
    run: LoadRun,
    request: PreparedRequest,
    index: int,
    record: StreamRecord,
    clocks: tuple[float, float, float],
) -> RequestSample:
    due, started, started_unix = clocks
    times = [t - started for t in record.token_times]
    return RequestSample(
        request_id=request.request_id,
        index=index,
        warmup=run.budget.is_warmup(index),
        endpoint=request.endpoint,
        model=request.model,
        mask=request.mask,
        prompt_id=request.prompt_id,
        scheduled_at=due,
        started_at=started,
        started_unix=started_unix,
        ttft_s=times[0] if times else None,
        e2e_s=record.end_time - started if record.end_time is not None else None,
        requested_tokens=request.max_tokens,
        token_times_s=times,
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        cached_tokens=record.cached_tokens,
        finish_reason=record.finish_reason,
    )
