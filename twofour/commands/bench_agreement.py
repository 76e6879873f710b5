"""`twofour bench agreement`: one server measured by guidellm and by this project's load tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.bench_options import JsonLine, KeepRows, finish, say
from twofour.commands.option_values import numbers

_Option = typer.Option


def agreement(
    engine: Annotated[Path, typer.Argument(help="Engine directory for the CPU.")],
    guidellm: Annotated[
        Path, _Option(help="guidellm's command, of an environment of its own.")
    ] = Path(".venv-guidellm/bin/guidellm"),
    concurrency: Annotated[str, _Option(help="Users at a time, separated by commas.")] = "1,4",
    requests: Annotated[int, _Option(help="Measured requests of a turn.", min=1)] = 24,
    repeats: Annotated[int, _Option(help="Turns of either tool at a load.", min=1)] = 3,
    prompt_tokens: Annotated[int, _Option(help="Tokens of a prompt.", min=1)] = 128,
    output_tokens: Annotated[int, _Option(help="Tokens to generate.", min=2)] = 64,
    keep: KeepRows = False,
    json_: JsonLine = False,
) -> None:
    """Measure a server with both clients in turns (docs/results/agreement.json)."""
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.serve.agreement import (
        KEY,
        AgreementPlan,
        client_agreement_page,
        measure_agreement,
    )

    if not guidellm.is_file():
        raise ValueError(f"--guidellm {guidellm} does not exist: make bench-agreement installs it")
    levels = numbers(concurrency, "--concurrency")
    plan = AgreementPlan(guidellm, prompt_tokens, output_tokens, requests, repeats)
    spec = TableSpec("agreement", KEY, client_agreement_page)
    table = Table(spec, Earlier.KEEP if keep else Earlier.DROP)
    folder = Path("results") / time.strftime("agreement-%Y%m%d-%H%M%S")
    for level in levels:
        table.put(measure_agreement(engine, plan, level, folder, say))
    finish(table.path, json_)
