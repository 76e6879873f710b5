"""Measures servers over HTTP in turns: what a user gets from sparsity."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common.arm_process import ArmError
from benchmarks.common.machine import BUSY_SHARE, OtherCpu, machine_seconds, require_quiet
from benchmarks.common.server_process import Server, ServerReport
from benchmarks.serve.arms import REFERENCE, Arm, ComparisonError, check_names, check_reports
from benchmarks.serve.plan import LoadPlan
from benchmarks.serve.running_server import RunningServer, RunningServerReport
from loadtests.blocks import Block, LoadPoint, doubts, problems, turns
from loadtests.client import LoadError, run_load
from loadtests.client_calibration import Bias, CalibrationError, calibrate
from loadtests.comparison import ComparisonRow, rows
from loadtests.samples import read_samples

_ATTEMPTS = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServeComparison:
    """The outcome.

    Attributes:
        rows: a row per arm and load, the reference's first; none of a load that is incomplete.
        reference: the arm that ratios are taken against.
        servers: by arm, what each server started here ran, and its memory.
        others: by arm, what is known of each server that ran already.
        calibration: what the load generator itself added.
        blocks: every single measurement.
        folder: raw samples and logs.
        other_cpu_share: the busiest block's share of CPU that went to unrelated processes.
        problems: what makes it void; measuring ended at the first.
        doubts: signs of a disturbed measurement that was forced.
    """

    rows: list[ComparisonRow]
    reference: str
    servers: dict[str, ServerReport]
    others: dict[str, RunningServerReport]
    calibration: Bias
    blocks: list[Block] = field(repr=False)
    folder: Path
    other_cpu_share: float
    problems: list[str]
    doubts: list[str]

    def require_valid(self) -> None:
        """Refuse to be quoted when void.

        Raises:
            ComparisonError: with the problems.
        """
        if self.problems:
            raise ComparisonError("; ".join(self.problems))


def compare_arms(
    arms: Sequence[Arm],
    plan: LoadPlan,
    folder: Path,
    on_progress: Say = lambda line: None,
    reference: str = REFERENCE,
) -> ServeComparison:
    """Serve engine directories at once and measure all arms in turns (a b c, c b a, a b c, ...).

    Arms that are not measured are idle. Arms of one directory share its server. Disturbed blocks
    are measured again. The first failed request, stall, dead server or block that stays disturbed
    ends the measuring, and is in the outcome's `problems`.

    Args:
        arms: what to measure, in order.
        plan: how to compare.
        folder: new or empty; gets raw samples, summaries and logs.
        on_progress: told what happens, a line at a time.
        reference: the arm that ratios are taken against.

    Raises:
        ValueError: the arms, the plan or the folder are unusable.
        ArmError: a server did not start.
        CalibrationError, LoadError: the load generator distorts, or does not run at all.
        BusyMachineError, ComparisonError: no layer is sparse, or the machine is busy.
    """
    plan.check()
    check_names(arms, reference)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: raw samples go to a folder of their own")
    require_quiet(plan.force)
    on_progress("calibrating the load generator")
    calibration = calibrate(folder, plan.streams)
    if not plan.force:
        calibration.check()
    with ExitStack() as stack:
        run = _Run(arms, plan, folder, on_progress, stack)
        run.measure_all()
        reports = run.reports()
    found = run.blocks
    samples = {block.samples_file: read_samples(folder / block.samples_file) for block in found}
    return ServeComparison(
        rows=rows(found, reference, samples, plan.repeats),
        reference=reference,
        servers=reports,
        others=run.others,
        calibration=calibration,
        blocks=found,
        folder=folder,
        other_cpu_share=max((block.other_cpu_share for block in found), default=0.0),
        problems=run.problems,
        doubts=[*_bias_doubts(calibration), *run.doubts],
    )


class _Run:
    """Servers that are up, and the blocks measured on them so far."""

    def __init__(
        self, arms: Sequence[Arm], plan: LoadPlan, folder: Path, say: Say, stack: ExitStack
    ) -> None:
        self._arms = {arm.name: arm for arm in arms}
        self._plan = plan
        self._folder = folder
        self._say = say
        self._servers = _start(arms, plan, folder, say, stack)
        self._masked: set[str] = set()
        self.others: dict[str, RunningServerReport] = {}
        self.blocks: list[Block] = []
        self.problems: list[str] = []
        self.doubts: list[str] = []
        for name, server in self._servers.items():
            if isinstance(server, RunningServer):
                self.others[name] = server.report()
        reports = self.reports()
        check_reports(arms, reports)
        self._masked = {name for name, report in reports.items() if report.sparse_layers}

    def measure_all(self) -> None:
        """Every block, until one is void or cannot be had."""
        for point in self._plan.points():
            for repeat, arm in turns(list(self._arms), self._plan.repeats):
                try:
                    block, disturbed = self._measure(arm, point, repeat)
                except LoadError as error:  # the server is gone, say, or a worker was lost
                    self.problems.append(f"{arm}, {point}, repeat {repeat + 1}: {error}")
                    return
                self.blocks.append(block)
                self.problems += problems([block])
                if disturbed and not self._plan.force:
                    self.problems.append(
                        f"{_ATTEMPTS} times in a row: {disturbed[0]}: end what disturbs, or "
                        "measure anyway with --force"
                    )
                if self.problems:
                    return
                self.doubts += disturbed

    def reports(self) -> dict[str, ServerReport]:
        """What each server started here says; one that is gone or counts otherwise is a problem."""
        found = {}
        for name, server in self._servers.items():
            if not isinstance(server, Server):
                continue
            try:
                report = dataclasses.replace(server.report(), arm=name)
            except ArmError as error:
                if not self.blocks:
                    raise
                self.problems.append(str(error))
                continue
            found[name] = report
            told = sum(
                block.summary.output_tokens
                for block in self.blocks
                if self._servers[block.arm] is server
            )
            self.problems += count_problems(report, told)
        return found

    def _measure(self, name: str, point: LoadPoint, repeat: int) -> tuple[Block, list[str]]:
        """One block, and what disturbed it; again, up to three times, unless that is forced."""
        for attempt in range(_ATTEMPTS):
            self._say(f"{name}, {point}, repeat {repeat + 1} of {self._plan.repeats}")
            file = f"{name}-{_slug(point)}-r{repeat}" + (f"-again{attempt}" if attempt else "")
            block = self._measure_once(name, point, repeat, file)
            disturbed = self._doubts(block)
            if self._plan.force or problems([block]) or not disturbed:
                break
            self._say(f"{disturbed[0]}: measuring this block again")
        return block, disturbed

    def _measure_once(self, name: str, point: LoadPoint, repeat: int, file: str) -> Block:
        arm, server = self._arms[name], self._servers[name]
        every = {id(s): s for s in self._servers.values()}.values()
        idle = [s for s in every if s is not server]
        # Servers that run already are no children of this process: `OtherCpu` counts them.
        strangers = [s for s in every if isinstance(s, RunningServer)]
        mix = arm.mask_mix or (self._plan.mask_mix if name in self._masked else None)
        load = self._plan.load(server.url, point, repeat, mix, arm.model)
        idle_from, strange_from = _total_cpu(idle), _total_cpu(strangers)
        start = time.perf_counter()
        with OtherCpu() as other:
            result = run_load(load, self._folder, file)
        machine_s = machine_seconds(start)
        idle_s, strange_s = _total_cpu(idle) - idle_from, _total_cpu(strangers) - strange_from
        return Block(
            arm=name,
            point=point,
            repeat=repeat,
            summary=result.summary,
            samples_file=result.samples_path.name,
            other_cpu_share=round(max(other.share - strange_s / machine_s, 0.0), 4),
            idle_cpu_share=round(max(idle_s, 0.0) / machine_s, 4),
        )

    def _doubts(self, block: Block) -> list[str]:
        share = max(block.other_cpu_share, block.idle_cpu_share)
        busy = [
            f"{block}: {share:.0%} of the CPU went to processes that were not measured (limit "
            f"{BUSY_SHARE:.0%})"
        ]
        return [*(busy if share > BUSY_SHARE else []), *doubts([block])]


def count_problems(report: ServerReport, told: int) -> list[str]:
    """The engine's own counter must cover what the load generator was told."""
    if report.generated_tokens >= told:
        return []
    return [
        f"the {report.arm} server says {told} tokens, its engine counted {report.generated_tokens}"
    ]


def _start(
    arms: Sequence[Arm], plan: LoadPlan, folder: Path, say: Say, stack: ExitStack
) -> dict[str, Server | RunningServer]:
    """A server for every arm; arms of one directory, or one address, share it."""
    servers: dict[str, Server | RunningServer] = {}
    known: dict[Path | str, Server | RunningServer] = {}
    for arm in arms:
        if arm.directory is None:
            where: Path | str = str(arm.url)
            if where not in known:
                known[where] = RunningServer(arm.name, str(arm.url))
        else:
            where = arm.directory.resolve()
            if where not in known:
                say(f"starting the {arm.name} server on {arm.directory}")
                log = folder / f"server-{arm.name}.log"
                server = Server(arm.name, arm.directory, log, threads=plan.threads)
                known[where] = stack.enter_context(server)
        servers[arm.name] = known[where]
    for started in known.values():
        if isinstance(started, Server):
            started.wait_until_healthy()
    return servers


def _total_cpu(servers: Sequence[Server | RunningServer]) -> float:
    """CPU time so far, seconds; a server that is gone, which its report tells, has none."""
    total = 0.0
    for server in servers:
        with suppress(ArmError):
            total += server.cpu_seconds()
    return total


def _bias_doubts(calibration: Bias) -> list[str]:
    try:
        calibration.check()
    except CalibrationError as error:
        return [str(error)]
    return []


def _slug(point: LoadPoint) -> str:
    """A load in the names of files."""
    load = f"r{point.rate:g}" if point.rate is not None else f"c{point.concurrency or 'trace'}"
    return re.sub(r"[^\w.-]+", "-", f"{point.lengths}-{load}")
