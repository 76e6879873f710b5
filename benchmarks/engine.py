"""The CPU engine end to end: sparse and dense arms in turns, beside vLLM and llama.cpp if given."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KV_BYTES = 256 << 20
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
    """

    lengths: tuple[tuple[int, int], ...]
    concurrencies: tuple[int, ...]
    repeats: int
    threads: int

    def __post_init__(self) -> None:
        numbers = [*self.concurrencies, *(n for pair in self.lengths for n in pair)]
        if not numbers or min(numbers) < 1 or self.repeats < 1 or self.threads < 1:
            raise ValueError("lengths, concurrency, repeats and threads must be at least 1")


@dataclass(frozen=True)
class Row:
    """One arm in one cell; `tokens_per_s_all` are the waves behind the median."""

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
    tokens_per_s_all: tuple[float, ...]


class Worker:
    """An arm in a process of its own that speaks `benchmarks.engine_worker`'s protocol."""

    def __init__(self, arm: str, command: Sequence[str]) -> None:
        self.arm = arm
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.rss_mib = 0.0
        self.ready: dict[str, Any] = {}

    def wait_ready(self) -> None:
        """Wait until the engine is loaded.

        Raises:
            BenchError: the process ended instead.
        """
        self.ready = self._read()

    def ask(self, command: object) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises:
            BenchError: the process ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print other things
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise BenchError(f"the {self.arm} arm ended with code {self._process.wait()}")


def engine_command(directory: Path, threads: int, max_sequences: int) -> list[str]:
    """How to start one of our own arms."""
    options = {
        "kv_bytes": KV_BYTES,
        "threads": threads,
        "max_sequences": max_sequences,
        "prefix_cache": False,
    }
    module = "benchmarks.engine_worker"
    return [sys.executable, "-m", module, str(directory.resolve()), json.dumps(options)]


def vllm_command(python: Path, model: Path, threads: int, max_sequences: int) -> list[str]:
    """How to start vLLM from an environment of its own."""
    script = Path(__file__).with_name("vllm_worker.py")
    options = {"kv_bytes": KV_BYTES, "threads": threads, "max_sequences": max_sequences}
    return [str(python), str(script), str(model.resolve()), json.dumps(options)]


def measure(arms: dict[str, list[str]], plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    """Rows of every cell, the arms taking turns wave by wave.

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
    for repeat in range(plan.repeats):
        # Every other round in reverse, so that drift favours no arm.
        for worker in workers if repeat % 2 == 0 else reversed(workers):
            wave = _wave(prompt, output, concurrency, 1 + repeat)
            waves[worker.arm].append(worker.ask(wave))
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
            tokens_per_s_all=tuple(round(wave["tokens_per_s"], 2) for wave in found),
            **{name: round(value, 2) for name, value in median.items()},
        )


def llama_rows(llama_bench: Path, ggufs: dict[str, Path], plan: Plan) -> Iterator[Row]:
    """llama.cpp's own benchmark at concurrency 1: prompt and generation are measured apart.

    Raises:
        BenchError: llama-bench failed.
    """
    for arm, gguf in ggufs.items():
        for prompt, output in plan.lengths:
            command = [str(llama_bench), "-m", str(gguf), "-t", str(plan.threads), "-o", "json"]
            command += ["-p", str(prompt), "-n", str(output), "-r", str(plan.repeats)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise BenchError(f"llama-bench failed: {done.stderr[-300:]}")
            found = {bool(test["n_gen"]): test for test in json.loads(done.stdout)}
            prompt_rate, rate = found[False]["avg_ts"], found[True]["avg_ts"]
            seconds = prompt / prompt_rate + output / rate
            yield Row(
                arm=f"llama.cpp-{arm}",
                prompt_tokens=prompt,
                output_tokens=output,
                concurrency=1,
                threads=plan.threads,
                tokens_per_s=round(output / seconds, 2),
                prompt_tokens_per_s=round(prompt_rate, 2),
                decode_tokens_per_s=round(rate, 2),
                ttft_ms=round(1e3 * prompt / prompt_rate, 2),
                tpot_ms=round(1e3 / rate, 2),
                rss_mib=None,
                weights_mib=round(found[True]["model_size"] / 2**20, 1),
                tokens_per_s_all=(),
            )


def as_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as the result file has them."""
    return [asdict(row) for row in rows]


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
