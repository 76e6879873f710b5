"""What an optimiser step of mask learning costs in two builds of twofour, both at the same time.

Every arm is a `twofour mask learn` of its own, on one thread each, so that what else the machine
does slows all of them. They learn equal steps from the same text and prior.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.page import markdown_table, number, page
from benchmarks.common.result_file import ResultData, ResultRow

_INTRO = """
An optimiser step of MaskLLM by two builds of twofour that learn at the same time, one thread each.
*State* is what learning keeps of every weight, at most; *memory* is the process's peak resident
set; *held out* is the loss of the hard masks in the end, on text that nobody learned from.
"""


_OPTIONS = {
    "batch_size",
    "micro_batches",
    "sequence_length",
    "learning_rate",
    "final_learning_rate",
    "seed",
}
"""Settings that `twofour mask learn` takes as options of their own."""


@dataclass(frozen=True)
class Arm:
    """A build.

    Attributes:
        executable: its `twofour`.
        settings: NAME=VALUE beyond those of all arms.
    """

    name: str
    executable: Path
    settings: Sequence[str]


@dataclass(frozen=True)
class StepRun:
    """What all arms do.

    Attributes:
        held_out: text for the loss in the end.
        settings: further options of `twofour mask learn`.
    """

    model: str
    prior: Path
    learn: Sequence[str]
    held_out: str
    steps: int
    settings: Sequence[str]


def parse_arm(spec: str) -> Arm:
    """NAME=EXECUTABLE[,SETTING=VALUE...].

    Raises:
        ValueError: it is none, or there is no such file.
    """
    name, _, rest = spec.partition("=")
    executable, *settings = rest.split(",")
    found = Path(executable).is_file() and os.access(executable, os.X_OK)
    if not name.isidentifier() or not found or not all("=" in setting for setting in settings):
        raise ValueError(
            f"{spec!r} names no executable: give NAME=PATH-TO-TWOFOUR[,SETTING=VALUE...], such as"
            " before=../before/.venv/bin/twofour, the name of letters, digits and _"
        )
    return Arm(name, Path(executable).absolute(), settings)


def run_arms(arms: Sequence[Arm], run: StepRun) -> list[ResultRow]:
    """One row an arm.

    Raises:
        ValueError: two arms have one name.
        RuntimeError: an arm failed; with the end of what it said.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"the arms are called {', '.join(names)}; each needs a name of its own")
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / name for name in names]
        try:
            for arm, folder in zip(arms, folders, strict=True):
                started.append(_start(arm, run, folder))
            return [_finish(*found) for found in zip(arms, started, folders, strict=True)]
        finally:
            for process in started:
                process.kill()  # nothing, if it has ended
                process.wait()


def _start(arm: Arm, run: StepRun, folder: Path) -> subprocess.Popen[bytes]:
    command = [str(arm.executable), "mask", "learn", "--model", run.model, "--method", "maskllm"]
    command += ["--prior", str(run.prior), "--steps", str(run.steps)]
    command += [part for text in run.learn for part in ("--data", text)]
    command += ["--held-out", run.held_out, "--held-out-every", str(run.steps)]
    for setting in (*run.settings, *arm.settings):
        name, _, value = setting.partition("=")
        own = name in _OPTIONS
        command += [f"--{name.replace('_', '-')}", value] if own else ["--set", setting]
    command += ["--run-dir", str(folder), "--out", str(folder.with_suffix(".safetensors"))]
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def _finish(arm: Arm, process: subprocess.Popen[bytes], folder: Path) -> ResultRow:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    said = folder.with_suffix(".log").read_text()
    if process.returncode:
        raise RuntimeError(f"{arm.name} ({arm.executable}) failed: {said[-600:]}")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    at = [line["seconds"] for line in lines]
    each = [later - earlier for earlier, later in itertools.pairwise(at)]
    state = re.search(r"training state ([\d.]+) bytes per\s+weight", said)
    return {
        "arm": arm.name,
        "seconds": round(at[-1] / len(at), 3),
        "median_seconds": round(median(each), 3),
        "state_bytes_per_weight": float(state[1]) if state else None,
        "peak_rss_gb": round(usage.ru_maxrss * 1024 / 1e9, 3),
        "held_out": round(lines[-1]["held_out"], 4),
        "steps": len(lines),
        "tokens_per_step": lines[0]["tokens"],
        "settings": list(arm.settings),
    }


def step_page(result: ResultData) -> str:
    """The arms, and each over the first."""
    first: Mapping[str, Any] = result["rows"][0]

    def ratio(row: ResultRow, name: str, unit: str) -> str:
        if row is first or row[name] is None or first[name] is None:
            return f"{number(row[name])} {unit}"
        return f"{number(row[name])} {unit} ({row[name] / first[name]:.2f})"

    rows = [
        [
            row["arm"],
            ", ".join(row["settings"]),
            row["steps"],
            ratio(row, "seconds", "s"),
            ratio(row, "median_seconds", "s"),
            ratio(row, "state_bytes_per_weight", "B"),
            ratio(row, "peak_rss_gb", "GB"),
            f"{row['held_out']:.3f}",
        ]
        for row in result["rows"]
    ]
    head = ["arm", "settings", "steps", "mean step", "median step", "state", "memory", "held out"]
    return page("A step of mask learning", _INTRO, result, markdown_table(head, rows, text=2))
