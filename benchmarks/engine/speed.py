"""The CPU engine end to end: sparse and dense arms in turns, beside vLLM and llama.cpp if given."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.common.machine import OtherCpu

FIGURES = ("tokens_per_s", "prompt_tokens_per_s", "decode_tokens_per_s", "ttft_ms", "tpot_ms")


class BenchError(RuntimeError):
    """An arm could not be measured."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        lengths: (prompt tokens, output tokens) pairs.
        concurrencies: how many requests start together.
        repeats: waves of every arm in every cell; figures are their medians.
        threads: OpenMP threads of every arm.
        kv_mib: memory for keys and values of every arm that takes a budget, in MiB.
    """

    lengths: tuple[tuple[int, int], ...]
    concurrencies: tuple[int, ...]
    repeats: int
    threads: int
    kv_mib: int = 256

    def __post_init__(self) -> None:
        numbers = [*self.concurrencies, *(n for pair in self.lengths for n in pair)]
        fixed = (self.repeats, self.threads, self.kv_mib)
        if not numbers or min(numbers) < 1 or min(fixed) < 1:
            raise ValueError("lengths, concurrency, repeats, threads and kv_mib must be at least 1")


@dataclass(frozen=True)
class Row:
    """One arm in one cell.

    `rss_mib` is of the arm's processes after one full-length request, `load_peak_mib` the most that
    loading took, `tokens_per_s_all` the waves behind the median, `dtype` what is computed in.
    `sparse_ratio` is the median of the sparse arm's tokens per second over this arm's, wave by wave
    of the same run; None without one. `other_cpu_share` is of this cell.
    """

    arm: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    threads: int
    tokens_per_s: float
    prompt_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_ms: float
    tpot_ms: float
    rss_mib: float | None
    weights_mib: float | None
    kv_mib: int
    load_peak_mib: float | None
    isa: str | None
    dtype: str | None
    sparse_ratio: float | None
    tokens_per_s_all: tuple[float, ...]
    other_cpu_share: float
    date: str


class Worker:
    """An arm in a process of its own that speaks `benchmarks.engine.worker`'s protocol.

    Between its turns it is stopped, with all processes below it: vLLM's spin while they wait.
    """

    def __init__(self, arm: str, command: Sequence[str]) -> None:
        self.arm = arm
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.rss_mib = 0.0
        self.ready: dict[str, Any] = {}

    def wait_ready(self) -> None:
        """Wait until the engine is loaded.

        Raises:
            BenchError: the process ended instead.
        """
        self.ready = self._read()
        self._signal(signal.SIGSTOP)

    def ask(self, command: object) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises:
            BenchError: the process ended.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End the process and all below it."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def _signal(self, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, what)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print other things
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise BenchError(f"the {self.arm} arm ended with code {self._process.wait()}")


def measure(arms: dict[str, list[str]], plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    """Rows of every cell, the arms taking turns wave by wave.

    Args:
        arms: name of each arm and how to start its worker.
        plan: what to measure.
        say: told what is measured now.

    Raises:
        BenchError: an arm could not be started or ended early.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(arm, command)) for arm, command in arms.items()]
        prompt, output = plan.lengths[0]
        for worker in workers:
            worker.ask(_wave(prompt, output, 1, 0))  # warm-up, and touches every weight
            worker.rss_mib = worker.ask("memory")["rss_mib"]
        for prompt, output in plan.lengths:
            for concurrency in plan.concurrencies:
                say(f"{prompt}/{output} tokens, concurrency {concurrency}")
                yield from _cell(workers, plan, prompt, output, concurrency)


def _cell(
    workers: list[Worker], plan: Plan, prompt: int, output: int, concurrency: int
) -> Iterator[Row]:
    waves: dict[str, list[dict[str, float]]] = {worker.arm: [] for worker in workers}
    with OtherCpu() as other:
        for repeat in range(plan.repeats):
            # Every other round in reverse, so that drift favours no arm.
            for worker in workers if repeat % 2 == 0 else reversed(workers):
                wave = _wave(prompt, output, concurrency, 1 + repeat)
                waves[worker.arm].append(worker.ask(wave))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    for worker in workers:
        found = waves[worker.arm]
        median = {name: statistics.median(wave[name] for wave in found) for name in FIGURES}
        yield Row(
            arm=worker.arm,
            prompt_tokens=prompt,
            output_tokens=output,
            concurrency=concurrency,
            threads=plan.threads,
            rss_mib=round(worker.rss_mib, 1),
            weights_mib=worker.ready.get("weights_mib"),
            kv_mib=plan.kv_mib,
            load_peak_mib=worker.ready.get("load_peak_mib"),
            isa=worker.ready.get("isa"),
            dtype=worker.ready.get("dtype"),
            sparse_ratio=_ratio(waves.get("sparse"), found) if worker.arm != "sparse" else None,
            tokens_per_s_all=tuple(round(wave["tokens_per_s"], 2) for wave in found),
            other_cpu_share=round(other.share, 4),
            date=date,
            **{name: round(value, 2) for name, value in median.items()},
        )


def _ratio(sparse: list[dict[str, float]] | None, other: list[dict[str, float]]) -> float | None:
    if sparse is None:
        return None
    pairs = zip(sparse, other, strict=True)
    return round(statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs), 3)


def as_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as the result file has them."""
    return [asdict(row) for row in rows]


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier rows of cells and arms that were not measured again, then the new ones.

    Raises:
        BenchError: earlier rows ran other instruction sets: they are of another machine.
    """
    sets = {row["isa"] for row in new if row["isa"]}
    if sets and any(row.get("isa") not in (*sets, None) or "isa" not in row for row in old):
        raise BenchError("the earlier rows are of another machine; measure all, without --keep")
    fresh = {_key(row) for row in new}
    return [row for row in old if _key(row) not in fresh] + list(new)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("arm", "prompt_tokens", "output_tokens", "concurrency", "threads")
    return tuple(row[name] for name in names)


def _wave(prompt: int, output: int, concurrency: int, seed: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "output_tokens": output,
        "concurrency": concurrency,
        "seed": seed,
    }


@contextmanager
def _worker(arm: str, command: list[str]) -> Iterator[Worker]:
    worker = Worker(arm, command)
    try:
        worker.wait_ready()
        yield worker
    finally:
        worker.close()
