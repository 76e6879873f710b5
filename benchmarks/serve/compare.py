"""Measures a dense and a sparse server over HTTP, in turns: what a user gets from sparsity."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common.machine import BUSY_SHARE, OtherCpu, machine_seconds, require_quiet
from benchmarks.serve.server_process import Server, ServerReport
from loadtests.calibration import Bias, calibrate
from loadtests.client import Load, run_load
from loadtests.comparison import Block, ComparisonRow, problems, rows, turns

BASELINE = "dense"
_ATTEMPTS = 3

Say = Callable[[str], None]


class ComparisonError(RuntimeError):
    """The comparison would not mean what it says."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How to compare.

    Attributes:
        concurrencies: users of the closed loop, one after another.
        requests: measured requests of a block; None is two per user, at least four.
        seconds: length of a block instead, when given.
        repeats: blocks of every arm at every concurrency.
        max_tokens: tokens that every request generates.
        prompt_words: length of the synthetic prompts.
        prompts: file of prompts instead of them.
        endpoint: `completions` or `chat`.
        mask_mix: masks that the sparse arm's requests ask for; None is its default mask.
        threads: OpenMP threads of each server; None leaves it to the machine.
        force: measure although other processes are busy or the load generator distorts; the
            comparison says by how much.
    """

    concurrencies: tuple[int, ...] = (1, 8)
    requests: int | None = None
    seconds: float | None = None
    repeats: int = 3
    max_tokens: int = 128
    prompt_words: int = 100
    prompts: Path | None = None
    endpoint: str = "completions"
    mask_mix: str | None = None
    threads: int | None = None
    force: bool = False

    def check(self) -> None:
        """Refuse numbers that make no comparison.

        Raises:
            ValueError: naming the number and its limit.
        """
        if not self.concurrencies or min(self.concurrencies) < 1:
            raise ValueError(f"concurrencies {self.concurrencies}: each must be at least 1")
        if len(set(self.concurrencies)) != len(self.concurrencies):
            raise ValueError(f"concurrencies {self.concurrencies}: name each once")
        for name in ("repeats", "max_tokens", "prompt_words", "requests", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds = {self.seconds}: must be positive")
        if self.seconds is not None and self.requests is not None:
            raise ValueError("a block ends after requests or seconds: give one of them")

    def load(self, arm: str, url: str, concurrency: int, repeat: int) -> Load:
        """The load of one block; both arms get the same prompts and salts in a repeat."""
        requests = self.requests
        if requests is None and self.seconds is None:
            requests = max(4, 2 * concurrency)
        return Load(
            host=url,
            concurrency=concurrency,
            requests=requests,
            seconds=self.seconds,
            warmup=concurrency,
            max_tokens=self.max_tokens,
            prompt_words=self.prompt_words,
            prompts=self.prompts.resolve() if self.prompts else None,
            endpoint=self.endpoint,
            mask_mix=None if arm == BASELINE else self.mask_mix,
            seed=repeat,
        )


@dataclass(frozen=True, slots=True)
class ServeComparison:
    """The outcome.

    Attributes:
        rows: a row per arm and concurrency, the dense arm's first.
        servers: by arm, what each server ran and its memory.
        calibration: what the load generator itself added.
        blocks: every single measurement.
        folder: raw samples and logs.
        other_cpu_share: the busiest block's share of CPU that went to unrelated processes.
    """

    rows: list[ComparisonRow]
    servers: dict[str, ServerReport]
    calibration: Bias
    blocks: list[Block] = field(repr=False)
    folder: Path
    other_cpu_share: float


def compare_arms(
    dense: Path,
    sparse: Path,
    plan: LoadPlan,
    folder: Path,
    on_progress: Say = lambda line: None,
    further: Mapping[str, Path] | None = None,
) -> ServeComparison:
    """Serve engine directories at once and measure them in turns (dense, sparse, sparse, ...).

    Arms that are not measured are idle. Blocks that other processes disturbed are measured again.

    Args:
        dense, sparse: engine directories.
        plan: how to compare.
        folder: new or empty; gets raw samples, summaries and logs.
        on_progress: told what happens, a line at a time.
        further: more sparse arms, of other types of values.

    Raises:
        ValueError: the plan or the folder is unusable.
        ArmError: a server did not start or died.
        CalibrationError, LoadError: the load generator distorts or does not run.
        BusyMachineError, ComparisonError: no layer is sparse, a request failed, or the machine is
            busy.
    """
    plan.check()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: raw samples go to a folder of their own")
    require_quiet(plan.force)
    on_progress("calibrating the load generator")
    calibration = calibrate(folder, max(plan.concurrencies))
    if not plan.force:
        calibration.check()
    with ExitStack() as stack:
        servers = {}
        for arm, directory in {BASELINE: dense, "sparse": sparse, **(further or {})}.items():
            on_progress(f"starting the {arm} server on {directory}")
            log = folder / f"server-{arm}.log"
            server = Server(arm, directory, log, threads=plan.threads)
            servers[arm] = stack.enter_context(server)
        for server in servers.values():
            server.wait_until_healthy()
        for arm in servers.keys() - {BASELINE}:
            _check_arms(servers[BASELINE].report(), servers[arm].report())
        blocks = [
            _measure(plan, servers, arm, level, repeat, folder, on_progress)
            for level in plan.concurrencies
            for repeat, arm in turns(list(servers), plan.repeats)
        ]
        reports = {arm: server.report() for arm, server in servers.items()}
    _check_counts(blocks, reports)
    return ServeComparison(
        rows=rows(blocks, BASELINE),
        servers=reports,
        calibration=calibration,
        blocks=blocks,
        folder=folder,
        other_cpu_share=max(block.other_cpu_share for block in blocks),
    )


def _measure(
    plan: LoadPlan,
    servers: dict[str, Server],
    arm: str,
    level: int,
    repeat: int,
    folder: Path,
    on_progress: Say,
) -> Block:
    """One block; again, up to three times in all, while other processes disturb it."""
    for attempt in range(_ATTEMPTS):
        name = f"{arm}-c{level}-r{repeat}" + (f"-again{attempt}" if attempt else "")
        on_progress(f"{arm}, {level} at a time, repeat {repeat + 1} of {plan.repeats}")
        idle = [server for other, server in servers.items() if other != arm]
        idle_from, start = sum(server.cpu_seconds() for server in idle), time.perf_counter()
        with OtherCpu() as other:
            load = plan.load(arm, servers[arm].url, level, repeat)
            result = run_load(load, folder, name)
        idle_s = sum(server.cpu_seconds() for server in idle) - idle_from
        block = Block(
            arm=arm,
            concurrency=level,
            repeat=repeat,
            summary=result.summary,
            samples_file=result.samples_path.name,
            other_cpu_share=round(other.share, 4),
            idle_cpu_share=round(idle_s / machine_seconds(start), 4),
        )
        if found := problems([block]):
            raise ComparisonError("; ".join(found))
        disturbance = max(block.other_cpu_share, block.idle_cpu_share)
        if plan.force or disturbance <= BUSY_SHARE:
            return block
        on_progress(f"{disturbance:.0%} of the CPU went elsewhere: measuring this block again")
    raise ComparisonError(
        f"{_ATTEMPTS} times in a row more than {BUSY_SHARE:.0%} of the CPU went to processes that "
        "were not measured: end them, or measure anyway with --force"
    )


def _check_arms(dense: ServerReport, sparse: ServerReport) -> None:
    if sparse.sparse_layers == 0:
        raise ComparisonError(
            f"no layer of {sparse.directory} runs a sparse kernel "
            f"({sparse.eligible_layers} are eligible): there is nothing to compare"
        )
    if dense.sparse_layers != 0:
        raise ComparisonError(
            f"{dense.sparse_layers} layers of {dense.directory} run a sparse kernel: "
            "it is no dense baseline"
        )
    if dense.base_digest != sparse.base_digest:
        raise ComparisonError(
            f"the arms are unlike models: base digests {dense.base_digest[:12]}... and "
            f"{sparse.base_digest[:12]}..."
        )
    if dense.isa != sparse.isa:
        raise ComparisonError(f"the arms run unlike kernels: {dense.isa} and {sparse.isa}")


def _check_counts(blocks: Sequence[Block], reports: dict[str, ServerReport]) -> None:
    """The engine's own counter must cover what the load generator was told."""
    for arm, report in reports.items():
        told = sum(block.summary.output_tokens for block in blocks if block.arm == arm)
        if report.generated_tokens < told:
            raise ComparisonError(
                f"the {arm} server says {told} tokens, its engine counted {report.generated_tokens}"
            )
