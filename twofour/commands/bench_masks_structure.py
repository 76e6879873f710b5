"""`twofour bench masks structure`: smaller dense models, and how fast they are."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from twofour.commands.bench_masks_inputs import (
    finish_table,
    open_table,
    open_workbench,
    read_general_texts,
)
from twofour.commands.bench_masks_options import (
    C4,
    CalibrationLength,
    CalibrationWindows,
    Dtype,
    FirstWindows,
    Learn,
    Model,
    Wikitext2,
    Work,
)
from twofour.commands.bench_options import JsonLine, RedoRows, say
from twofour.commands.option_values import method_settings

_Option = typer.Option


def structure(
    model: Model = "smollm2-135m",
    learn: Learn = None,
    wikitext2: Wikitext2 = "wikipedia:test",
    c4: C4 = "c4",
    ratio: Annotated[
        list[float] | None, _Option(help="Share of weights left (repeat). [0.8, 0.65, 0.5]")
    ] = None,
    heads: Annotated[
        list[int] | None, _Option(help="Key-value heads that stay (repeat). [all]")
    ] = None,
    only: Annotated[list[str] | None, _Option(help="Only this method (repeat).")] = None,
    settings: Annotated[
        list[str] | None,
        _Option("--set", help="NAME=VALUE: a setting of the methods that learn (repeat)."),
    ] = None,
    recovery: Annotated[
        list[str] | None,
        _Option(
            "--recover",
            help="Also recover MaskPrune's and magnitude's models, with NAME=VALUE, such as"
            " steps=100 (repeat).",
        ),
    ] = None,
    speed: Annotated[
        bool, _Option("--speed", help="Only time the models of the rows that are there.")
    ] = False,
    force: Annotated[bool, _Option(help="Time on a busy machine all the same.")] = False,
    dtype: Dtype = "auto",
    windows: FirstWindows = None,
    calibration_windows: CalibrationWindows = 64,
    calibration_length: CalibrationLength = 1024,
    work: Work = Path("runs/masks"),
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """Smaller dense models by method (docs/results/structure.json)."""
    from benchmarks.common.machine import require_quiet
    from benchmarks.common.table import TableSpec
    from benchmarks.masks.structure_speed import add_speed, models_to_time
    from benchmarks.masks.structures import KEY, METHODS, RATIOS, run_structures
    from benchmarks.masks.structures_page import structures_page
    from maskgen.recovery.config import RecoverConfig

    if unknown := sorted(set(only or ()) - set(METHODS)):
        raise ValueError(f"--only {unknown[0]!r} is none of {', '.join(METHODS)}")
    console = Console(stderr=json_)
    bench = open_workbench(
        model, work / "structures", console, calibration_windows, calibration_length, windows, dtype
    )
    texts = read_general_texts(learn, wikitext2, c4)
    table = open_table(TableSpec("structure", KEY, structures_page), bench, texts.digests(), redo)
    if speed:
        if recovery or only or settings or ratio or heads:
            raise ValueError("--speed times the rows that are there; give it without other choices")
        require_quiet(force)
        add_speed(table, _timed(models_to_time(bench, table.rows())))
    else:
        chosen, methods = method_settings(settings or []), set(only or METHODS)
        tuning = RecoverConfig.model_validate(method_settings(recovery)) if recovery else None
        run_structures(bench, texts, table, ratio or RATIOS, heads or (), methods, chosen, tuning)
    finish_table(table, console, json_)


def _timed(models: Mapping[str, Path]) -> dict[str, Any]:
    """Arm -> what the CPU engine does with its model in bf16, one request of 128 + 128 tokens."""
    from benchmarks.common.engine_directories import build_engine
    from benchmarks.engine.arms import engine_command
    from benchmarks.engine.speed import SpeedPlan, measure
    from benchmarks.masks.structure_speed import DENSE

    cores = len(os.sched_getaffinity(0))
    plan = SpeedPlan(((128, 128),), (1,), repeats=5, threads=cores, reference=DENSE)
    with tempfile.TemporaryDirectory(prefix="twofour-bench-") as folder:
        commands = {
            arm: engine_command(build_engine(str(model), {}, Path(folder) / arm), plan)
            for arm, model in models.items()
        }
        return {row["arm"]: row for rows in measure(commands, plan, say) for row in rows}
