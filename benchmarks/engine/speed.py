"""`twofour bench engine speed`: the CPU engine end to end, its arms and those of peers in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.common.arm_process import Worker
from benchmarks.common.machine import OtherCpu
from benchmarks.common.result_file import ResultRow
from benchmarks.common.waves import FIGURES, Wave

KEY = ("arm", "prompt_tokens", "output_tokens", "concurrency", "threads")
"""What names a row."""


@dataclass(frozen=True)
class SpeedPlan:
    """What to measure.

    Attributes:
        lengths: (prompt tokens, output tokens) pairs.
        concurrencies: how many requests start together.
        repeats: waves of every arm in every cell; figures are their medians.
        threads: OpenMP threads of every arm.
        kv_mib: memory for keys and values of every arm that takes a budget, in MiB.
        reference: the arm that the others are compared with.
    """

    lengths: tuple[tuple[int, int], ...]
    concurrencies: tuple[int, ...]
    repeats: int
    threads: int
    kv_mib: int = 256
    reference: str = "sparse"

    def __post_init__(self) -> None:
        numbers = [*self.concurrencies, *(n for pair in self.lengths for n in pair)]
        fixed = (self.repeats, self.threads, self.kv_mib)
        if not numbers or min(numbers) < 1 or min(fixed) < 1:
            raise ValueError("lengths, concurrency, repeats, threads and kv_mib must be at least 1")


@dataclass(frozen=True)
class SpeedRow:
    """One arm in one cell.

    `rss_mib` is of the arm's processes after one full-length request, `load_peak_mib` the most that
    loading took, `tokens_per_s_all` the waves behind the median, `dtype` what is computed in.
    `sparse_ratio` is the median of the reference arm's tokens per second over this arm's, wave by
    wave of the same run; None without one. `other_cpu_share` is of this cell.
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


@dataclass(frozen=True)
class _Cell:
    """Lengths and concurrency of one part of the table."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int

    def wave(self, seed: int) -> dict[str, Any]:
        return asdict(Wave(self.prompt_tokens, self.output_tokens, self.concurrency, seed))


def measure(
    arms: Mapping[str, Sequence[str]], plan: SpeedPlan, say: Callable[[str], None]
) -> Iterator[list[ResultRow]]:
    """The rows (`SpeedRow`) of one cell after another, the arms taking turns wave by wave.

    Args:
        arms: name of each arm and how to start its worker.
        plan: what to measure.
        say: told what is measured now.

    Raises:
        ArmError: an arm could not be started or ended early.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(arm, command)) for arm, command in arms.items()]
        memory = {}
        for worker in workers:
            worker.ask("wave", _Cell(*plan.lengths[0], 1).wave(0))  # warms up, touches all weights
            memory[worker.arm] = round(worker.ask("memory")["rss_mib"], 1)
        for lengths in plan.lengths:
            for concurrency in plan.concurrencies:
                say(f"{lengths[0]}/{lengths[1]} tokens, concurrency {concurrency}")
                yield _measure_cell(workers, plan, _Cell(*lengths, concurrency), memory)


def _measure_cell(
    workers: list[Worker], plan: SpeedPlan, cell: _Cell, memory: Mapping[str, float]
) -> list[ResultRow]:
    waves: dict[str, list[dict[str, float]]] = {worker.arm: [] for worker in workers}
    with OtherCpu() as other:
        for repeat in range(plan.repeats):
            # Every other round in reverse, so that drift favours no arm.
            for worker in workers if repeat % 2 == 0 else reversed(workers):
                waves[worker.arm].append(worker.ask("wave", cell.wave(1 + repeat)))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    rows = []
    for worker in workers:
        found = waves[worker.arm]
        figures: dict[str, Any] = {
            name: round(statistics.median(wave[name] for wave in found), 2) for name in FIGURES
        }
        row = SpeedRow(
            arm=worker.arm,
            **asdict(cell),
            threads=plan.threads,
            rss_mib=memory[worker.arm],
            weights_mib=worker.ready.get("weights_mib"),
            kv_mib=plan.kv_mib,
            load_peak_mib=worker.ready.get("load_peak_mib"),
            isa=worker.ready.get("isa"),
            dtype=worker.ready.get("dtype"),
            sparse_ratio=None
            if worker.arm == plan.reference
            else _ratio(waves.get(plan.reference), found),
            tokens_per_s_all=tuple(round(wave["tokens_per_s"], 2) for wave in found),
            other_cpu_share=round(other.share, 4),
            date=date,
            **figures,
        )
        rows.append(asdict(row))
    return rows


def _ratio(reference: list[dict[str, float]] | None, other: list[dict[str, float]]) -> float | None:
    if reference is None:
        return None
    pairs = zip(reference, other, strict=True)
    return round(statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs), 3)
