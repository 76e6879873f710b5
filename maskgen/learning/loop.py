"""The loop that every learned method runs in: resume, step, watch, report, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from maskgen.learning.checkpoint import CheckpointFolder, RunState
from maskgen.learning.config import LearnConfig
from maskgen.learning.distributed import World
from maskgen.learning.learner import Learner, StepReport
from maskgen.learning.progress import Reporter

_SMOOTHING = 0.9


class LearningStoppedError(ValueError):
    """The loss became NaN or diverged; the message names the last good checkpoint."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where and how a run reports; none of it changes what is learned.

    Attributes:
        folder: checkpoints and `log.jsonl`.
        identity: settings and digests that a resumed run must share.
        resume: go on from the folder's newest checkpoint; otherwise an occupied folder is refused.
        tensorboard: folder for event files.
        held_out: windows of token ids on which the hard masks are evaluated while learning.
        held_out_every: steps between those evaluations; 0 for never.
        divergence: stop when the smoothed loss is this far above its lowest value, nats.
    """

    folder: Path
    identity: dict[str, Any]
    resume: bool = False
    tensorboard: Path | None = None
    held_out: Sequence[Tensor] = ()
    held_out_every: int = 0
    divergence: float = math.inf


def run(
    learner: Learner, config: LearnConfig, options: RunOptions, world: World, console: Console
) -> float:
    """Drive `learner` to `config.steps`.

    Returns:
        Seconds that all steps took, those before a resumption included.

    Raises:
        LearningStoppedError: NaN or divergence.
        CheckpointError: the folder holds another run's checkpoint, or damaged ones alone; or a
            checkpoint cannot be written.
        ValueError: the folder holds a checkpoint although `resume` is off.
    """
    folder = CheckpointFolder(options.folder, world)
    if not options.resume and folder.latest() is not None:
        raise ValueError(
            f"{options.folder} already holds {folder.latest()}; resume it, or name another folder"
        )
    if not world.first:
        console = Console(quiet=True)
    state = _restored(folder, learner, options, console)
    watch = _Watch(state.statistics, options.divergence)
    log = options.folder / ("log.jsonl" if world.first else f".log-rank{world.rank}.jsonl")
    reporter = Reporter(
        config.steps, state.step, log, console, options.tensorboard if world.first else None
    )
    with reporter:
        begin, start = time.monotonic(), state.step
        before = seconds = state.statistics.get("seconds", 0.0)
        for step in range(state.step, config.steps):
            report = learner.step(step)
            done = step + 1
            watch.check(report, done, folder)
            spent = time.monotonic() - begin
            seconds, rate = before + spent, (done - start) / spent
            record: dict[str, Any] = {
                "step": done,
                "loss": report.loss,
                "tokens": done * config.tokens_per_step,
                **report.extra,
                "seconds": round(seconds, 2),
                "steps_per_second": round(rate, 4),
                "eta_seconds": round((config.steps - done) / rate),
            }
            last = done == config.steps
            if last or done % config.log_every == 0:
                movement = learner.movement()
                record |= {"changed": movement.changed, "sharpness": movement.sharpness}
            if options.held_out_every and (last or done % options.held_out_every == 0):
                record["held_out"] = learner.evaluate(options.held_out)
            reporter.report(record)
            if last or done % config.checkpoint_every == 0:
                statistics = {**watch.statistics(), "seconds": seconds}
                state = RunState(done, options.identity, statistics)
                folder.save(state, learner.logits(), learner.optimiser())
    return seconds


def _restored(
    folder: CheckpointFolder, learner: Learner, options: RunOptions, console: Console
) -> RunState:
    """Where the run stands, `learner` included. A function, so that what was read is let go."""

    def show(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    found = folder.load(options.identity, show)
    if found is None:
        return RunState(0, options.identity)
    learner.restore(found.logits, found.optimiser)
    show(f"resuming after step {found.state.step} from {found.path}")
    return found.state


class _Watch:
    """Stops a run that has gone wrong, before it overwrites a good checkpoint."""

    def __init__(self, statistics: dict[str, float], divergence: float) -> None:
        self._smoothed = statistics.get("smoothed_loss", math.nan)
        self._lowest = statistics.get("lowest_loss", math.inf)
        self._divergence = divergence

    def statistics(self) -> dict[str, float]:
        return {"smoothed_loss": self._smoothed, "lowest_loss": self._lowest}

    def check(self, report: StepReport, step: int, folder: CheckpointFolder) -> None:
        numbers = {"loss": report.loss, **report.extra}
        for name, value in numbers.items():
            if not math.isfinite(value):
                self._stop(f"{name} is {value} at step {step}", folder)
        old = self._smoothed
        fresh = math.isnan(old)
        self._smoothed = report.loss if fresh else _SMOOTHING * old + (1 - _SMOOTHING) * report.loss
        self._lowest = min(self._lowest, self._smoothed)
        if self._smoothed > self._lowest + self._divergence:
            self._stop(
                f"the smoothed loss rose to {self._smoothed:.2f} at step {step}, more than "
                f"{self._divergence} above its lowest, {self._lowest:.2f}",
                folder,
            )

    def _stop(self, what: str, folder: CheckpointFolder) -> None:
        good = folder.latest()
        where = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        raise LearningStoppedError(f"{what}; {where}. Lower the learning rate and resume from it")
