"""The loop that masks are learned and weights are recovered in: resume, step, watch, checkpoint."""

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
from maskgen.learning.config import RunConfig
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
        title: what the run is called on the screen.
        resume: go on from the folder's newest checkpoint; otherwise an occupied folder is refused.
        tensorboard: folder for event files.
        held_out: windows of token ids on which what was learned is evaluated on the way.
        held_out_every: steps between those evaluations; 0 for never.
        keep_best: keep what did best on `held_out`, from before the first step on.
        patience: evaluations without improvement after which the run stops; 0 for never.
        divergence: stop when the smoothed loss is this far above its lowest value, nats.
    """

    folder: Path
    identity: dict[str, Any]
    title: str = "learn"
    resume: bool = False
    tensorboard: Path | None = None
    held_out: Sequence[Tensor] = ()
    held_out_every: int = 0
    keep_best: bool = False
    patience: int = 0
    divergence: float = math.inf


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        seconds: that all steps took, those before a resumption included.
        steps: how many were done; fewer than asked for if held-out text stopped the run.
        best_step: after how many steps held-out text was predicted best; None if not watched.
    """

    seconds: float
    steps: int
    best_step: int | None = None


def run(
    learner: Learner, config: RunConfig, options: RunOptions, world: World, console: Console
) -> RunOutcome:
    """Drive `learner` to `config.steps`, or until held-out text stops it.

    With `keep_best` the learner ends with what did best there (its optimiser is not put back).

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
    best = _Best(state.statistics, options, folder)
    log = options.folder / ("log.jsonl" if world.first else f".log-rank{world.rank}.jsonl")
    reporter = Reporter(
        config.steps,
        state.step,
        log,
        console,
        options.tensorboard if world.first else None,
        title=options.title,
    )
    with reporter:
        begin, start = time.monotonic(), state.step
        before = seconds = state.statistics.get("seconds", 0.0)
        done = start
        if start == 0 and options.keep_best and options.held_out_every:
            reporter.report({"step": 0, "held_out": best.judge(learner, 0)})
        for step in range(start, config.steps):
            if best.is_past():
                break
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
                record |= learner.measure()
            if options.held_out_every and (last or done % options.held_out_every == 0):
                record["held_out"] = best.judge(learner, done)
            reporter.report(record)
            if last or best.is_past() or done % config.checkpoint_every == 0:
                statistics = {**watch.statistics(), **best.statistics(), "seconds": seconds}
                state = RunState(done, options.identity, statistics)
                folder.save(state, learner.learned(), learner.optimiser())
    if best.step is not None:
        learner.restore(folder.best(), {})
        if done < config.steps:
            console.print(
                f"stopped after step {done}: {options.patience} evaluations on held-out text"
                " without improvement"
            )
        console.print(f"held-out text was predicted best after step {best.step}")
    return RunOutcome(seconds, done, best.step)


def _restored(
    folder: CheckpointFolder, learner: Learner, options: RunOptions, console: Console
) -> RunState:
    """Where the run stands, `learner` included. A function, so that what was read is let go."""

    def show(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    found = folder.load(options.identity, show)
    if found is None:
        return RunState(0, options.identity)
    learner.restore(found.learned, found.optimiser)
    show(f"resuming after step {found.state.step} from {found.path}")
    return found.state


class _Best:
    """Keeps what predicts held-out text best, and says when nothing better comes any more."""

    def __init__(
        self, statistics: dict[str, float], options: RunOptions, folder: CheckpointFolder
    ) -> None:
        self._options, self._folder = options, folder
        self._loss = statistics.get("best_held_out", math.inf)
        self._stale = int(statistics.get("stale_evaluations", 0))
        found = statistics.get("best_step")
        self.step = None if found is None else int(found)

    def statistics(self) -> dict[str, float]:
        if self.step is None:
            return {}
        return {
            "best_held_out": self._loss,
            "best_step": self.step,
            "stale_evaluations": self._stale,
        }

    def judge(self, learner: Learner, step: int) -> float:
        loss = learner.evaluate(self._options.held_out)
        if not self._options.keep_best:
            return loss
        if loss < self._loss:
            self._loss, self.step, self._stale = loss, step, 0
            self._folder.save_best(learner.learned())
        else:
            self._stale += 1
        return loss

    def is_past(self) -> bool:
        return 0 < self._options.patience <= self._stale


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
