"""The engine called directly and the server over it, in turns: what HTTP costs."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.common.arm_process import Worker
from benchmarks.common.machine import OtherCpu, process_seconds
from benchmarks.common.result_file import ResultRow
from benchmarks.common.server_process import Server
from benchmarks.common.waves import Wave, run_wave
from benchmarks.overhead.stream_client import StreamConnection, completion_request

KEY = ("concurrency",)
"""What names a row."""

Figures = dict[str, float]

_FEW = Wave(8, 2, 1)
"""What an arm does before it is measured: a process that was stopped for seconds is cold."""
_SHORT_WAVES = 5
"""Waves of short prompts whose median is one turn's time to first token."""


@dataclass(frozen=True)
class OverheadPlan:
    """What to measure.

    Attributes:
        prompt_tokens, output_tokens: of every request.
        concurrencies: how many requests start together.
        repeats: waves of either arm at each.
        threads: OpenMP threads of either arm.
        vocabulary: token ids of prompts are below it.
    """

    prompt_tokens: int
    output_tokens: int
    concurrencies: tuple[int, ...]
    repeats: int
    threads: int
    vocabulary: int


@dataclass(frozen=True)
class OverheadRow:
    """Both arms at one number of streams; medians over the repeats.

    `ratio` and `added_ttft_ms` are medians of what either repeat's pair of turns says; the latter
    is of prompts of 8 tokens, since a long prompt's time varies by more than the server adds. CPU
    is milliseconds of all cores for each token: of the engine's process, of the server's, and of
    the client's, which shares the machine with the latter.
    """

    concurrency: int
    engine_tokens_per_s: float
    http_tokens_per_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    engine_ttft_ms: float
    http_ttft_ms: float
    added_ttft_ms: float
    engine_cpu_ms: float
    server_cpu_ms: float
    client_cpu_ms: float
    repeats: int
    prompt_tokens: int
    output_tokens: int
    threads: int
    other_cpu_share: float


class EngineArm:
    """The engine in a process of its own, called directly.

    Args:
        worker: a process of `benchmarks.engine.worker`.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def wave(self, wave: Wave) -> Figures:
        """The figures of a wave, and the CPU time that it took."""
        process = self._worker.alive()
        before = process_seconds(process)
        figures = self._worker.ask("wave", asdict(wave))
        return figures | {"cpu_s": process_seconds(process) - before, "client_cpu_s": 0.0}


class HttpArm:
    """The same engine behind the server; this process is the client.

    Args:
        server: healthy, and stopped while it is not asked.
        vocabulary: token ids of prompts are below it.
    """

    def __init__(self, server: Server, vocabulary: int) -> None:
        self._server = server
        self._vocabulary = range(vocabulary)
        address = urlsplit(server.url)
        self._host, self._port = str(address.hostname), int(address.port or 80)

    def wave(self, wave: Wave) -> Figures:
        """The same, and the client's CPU time.

        Raises:
            StreamError: an answer is no complete stream.
        """
        self._server.go_on()
        begin = self._server.cpu_seconds(), time.process_time()
        figures = asyncio.run(self._run(wave))
        end = self._server.cpu_seconds(), time.process_time()
        self._server.stop()
        return figures | {"cpu_s": end[0] - begin[0], "client_cpu_s": end[1] - begin[1]}

    async def _run(self, wave: Wave) -> Figures:
        requests = [
            completion_request(self._host, prompt, wave.output_tokens)
            for prompt in wave.prompts(self._vocabulary)
        ]
        connections = [
            await StreamConnection.open(self._host, self._port) for _ in range(wave.concurrency)
        ]

        def generate(number: int, _: tuple[int, ...]) -> AsyncIterator[int]:
            return connections[number].events(requests[number])

        try:
            figures = await run_wave(wave, self._vocabulary, generate)
            for connection in connections:
                connection.check(wave.output_tokens)
        finally:
            for connection in connections:
                connection.close()
        return figures


def measure_overhead(
    engine_command: Sequence[str],
    directory: Path,
    options: Sequence[str],
    plan: OverheadPlan,
    log: Path,
    say: Callable[[str], None],
) -> Iterator[ResultRow]:
    """A row (`OverheadRow`) for each number of streams, the arms taking turns wave by wave.

    Args:
        engine_command: starts the engine's worker.
        directory: engine directory to serve.
        options: of `twofour serve`, so that its engine is the worker's.
        plan: what to measure.
        log: file for what the server prints.
        say: told what is measured now.

    Raises:
        ArmError: an arm could not be started or ended early.
        StreamError: an answer is no complete stream.
    """
    server = Server("http", directory, log, threads=plan.threads, options=options)
    with server, Worker("engine", engine_command) as worker:
        server.wait_until_healthy()
        arms = EngineArm(worker), HttpArm(server, plan.vocabulary)
        for arm in arms:
            arm.wave(Wave(plan.prompt_tokens, plan.output_tokens, 1))  # touches all weights
        for concurrency in plan.concurrencies:
            say(f"{concurrency} streams")
            yield _row(arms, plan, concurrency)


def _row(arms: tuple[EngineArm, HttpArm], plan: OverheadPlan, concurrency: int) -> ResultRow:
    engine, http = arms
    direct: list[Figures] = []
    served: list[Figures] = []
    with OtherCpu() as other:
        for repeat in range(plan.repeats):
            wave = Wave(plan.prompt_tokens, plan.output_tokens, concurrency, 1 + repeat)
            turns: list[tuple[EngineArm | HttpArm, list[Figures]]] = [
                (engine, direct),
                (http, served),
            ]
            # Every other pair in reverse, so that drift favours no arm.
            for arm, found in turns if repeat % 2 == 0 else reversed(turns):
                arm.wave(_FEW)
                short = Wave(_FEW.prompt_tokens, _FEW.output_tokens, concurrency)
                first = statistics.median(arm.wave(short)["ttft_ms"] for _ in range(_SHORT_WAVES))
                found.append(arm.wave(wave) | {"short_ttft_ms": first})
    pairs = list(zip(direct, served, strict=True))
    ratios = [b["tokens_per_s"] / a["tokens_per_s"] for a, b in pairs]
    tokens = concurrency * plan.output_tokens
    added = [b["short_ttft_ms"] - a["short_ttft_ms"] for a, b in pairs]
    row = OverheadRow(
        concurrency=concurrency,
        engine_tokens_per_s=_median(a["tokens_per_s"] for a in direct),
        http_tokens_per_s=_median(b["tokens_per_s"] for b in served),
        ratio=round(statistics.median(ratios), 4),
        ratio_low=round(min(ratios), 4),
        ratio_high=round(max(ratios), 4),
        engine_ttft_ms=_median(a["ttft_ms"] for a in direct),
        http_ttft_ms=_median(b["ttft_ms"] for b in served),
        added_ttft_ms=_median(iter(added)),
        engine_cpu_ms=_median(1e3 * a["cpu_s"] / tokens for a in direct),
        server_cpu_ms=_median(1e3 * b["cpu_s"] / tokens for b in served),
        client_cpu_ms=_median(1e3 * b["client_cpu_s"] / tokens for b in served),
        repeats=plan.repeats,
        prompt_tokens=plan.prompt_tokens,
        output_tokens=plan.output_tokens,
        threads=plan.threads,
        other_cpu_share=round(other.share, 4),
    )
    return asdict(row)


def _median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 3)
