"""What a run shows and writes while it goes: a live bar, JSON lines, TensorBoard."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from maskgen.format.atomic_file import atomic_writer, named_errors


class RunLog:
    """`log.jsonl` of a run, one object a step; a resumed run first drops what it will redo."""

    def __init__(self, path: Path, done: int) -> None:
        self._path = path
        if path.exists():
            lines = path.read_text("utf-8", "replace").splitlines() if done else []
            with atomic_writer(path) as file:
                file.writelines(f"{line}\n".encode() for line in lines if _step(line) <= done)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with named_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        # A line that a kill or a full disk cut short.
        return 2**62


class Reporter:
    """Live bar on a terminal, a line now and then elsewhere; plus the log and TensorBoard.

    Args:
        tensorboard: folder for event files, or None.

    Raises:
        ValueError: TensorBoard was asked for and is not installed.
    """

    def __init__(
        self,
        total: int,
        done: int,
        log: Path,
        console: Console,
        tensorboard: Path | None = None,
        every: int = 10,
        title: str = "learn",
    ) -> None:
        self._log = RunLog(log, done)
        self._console = console
        self._every = every
        self._total = total
        self._title = title
        self._board = None if tensorboard is None else _summary_writer(tensorboard)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, numbers="")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._bar)
        if self._board is not None:
            self._stack.callback(self._board.close)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def report(self, record: dict[str, Any]) -> None:
        """Show and store the numbers of one step; `record["step"]` counts steps done."""
        self._log.write(record)
        step = int(record["step"])
        numbers = "  ".join(f"{name} {_short(record[name])}" for name in _SHOWN if name in record)
        self._bar.update(self._task, completed=step, numbers=numbers)
        if not self._console.is_terminal and (step % self._every == 0 or step == self._total):
            self._console.print(
                f"{self._title}: step {step}/{self._total}  {numbers}", highlight=False
            )
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)


_SHOWN = ("loss", "masked", "held_out", "changed", "sharpness", "steps_per_second", "eta_seconds")


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs it installed: pip install tensorboard") from error
    return SummaryWriter(str(folder))
