"""`twofour bench masks step`: what an optimiser step costs in two builds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.bench_masks_options import Learn, Model
from twofour.commands.bench_options import JsonLine, finish

_Option = typer.Option


def step(
    prior: Annotated[Path, _Option(help="Mask file to start from.")],
    arm: Annotated[
        list[str],
        _Option(help="NAME=PATH-TO-TWOFOUR[,SETTING=VALUE...] (repeat; the first is compared to)."),
    ],
    model: Model = "smollm2-135m",
    learn: Learn = None,
    held_out: Annotated[str, _Option(help="Text for the loss in the end.")] = "wikipedia:test",
    steps: Annotated[int, _Option(help="Of every arm.", min=2)] = 150,
    settings: Annotated[
        list[str] | None, _Option("--set", help="NAME=VALUE of all arms (repeat).")
    ] = None,
    json_: JsonLine = False,
) -> None:
    """A step of MaskLLM in two builds (docs/results/learning-step.json)."""
    from benchmarks.common.machine import OtherCpu
    from benchmarks.common.result_file import this_command, write_result
    from benchmarks.masks.learning_step import StepRun, parse_arm, run_arms, step_page

    arms = [parse_arm(spec) for spec in arm]
    if len(arms) < 2:
        raise ValueError(f"{len(arms)} arm compares nothing; give --arm at least twice")
    texts = learn or ["wikipedia:train"]
    run = StepRun(model, prior, texts, held_out, steps, settings or [])
    with OtherCpu() as other:
        rows = run_arms(arms, run)
    path = write_result(
        "learning-step",
        step_page,
        rows,
        command=this_command(),
        other_cpu_share=round(other.share, 3),
    )
    finish(path, json_)
