"""`twofour bench serve`: a dense and a sparse server, measured in turns over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twofour.commands.bench_options import Dense, JsonLine, Masks, Sparse, finish, say
from twofour.commands.option_values import named_masks, numbers

if TYPE_CHECKING:
    from benchmarks.serve.compare import LoadPlan

_Option = typer.Option


def serve(
    dense: Dense = None,
    sparse: Sparse = None,
    model: Annotated[
        str | None, _Option(help="Instead of both: build them from this model and --mask.")
    ] = None,
    mask: Masks = None,
    concurrency: Annotated[str, _Option(help="Users at a time, separated by commas.")] = "1,8",
    requests: Annotated[
        int | None, _Option(help="Measured requests of a block. [2 per user, at least 4]")
    ] = None,
    seconds: Annotated[float | None, _Option(help="Length of a block, instead.")] = None,
    repeats: Annotated[int, _Option(help="Blocks of every arm at every concurrency.")] = 3,
    max_tokens: Annotated[int, _Option(help="Tokens that every request generates.")] = 128,
    prompt_words: Annotated[int, _Option(help="Words of the synthetic prompts.")] = 100,
    prompts: Annotated[
        Path | None, _Option(help="Prompts: a line each, or *.jsonl with a prompt field.")
    ] = None,
    endpoint: Annotated[str, _Option(help="completions or chat.")] = "completions",
    mask_mix: Annotated[
        str | None, _Option(help="Masks of the sparse arm's requests: uniform:A,B or zipf:A,B.")
    ] = None,
    threads: Annotated[int | None, _Option(help="OpenMP threads of each server.")] = None,
    out: Annotated[
        Path | None, _Option(help="New folder for raw samples. [results/serve-TIME]")
    ] = None,
    force: Annotated[bool, _Option(help="Measure on a busy machine all the same.")] = False,
    json_: JsonLine = False,
) -> None:
    """Measure a dense and a sparse server in turns, and write docs/results/serve.json."""
    from benchmarks.common.engine_directories import engine_pair
    from benchmarks.serve.compare import LoadPlan

    if endpoint not in ("completions", "chat"):
        raise ValueError(f"--endpoint {endpoint!r}: must be completions or chat")
    plan = LoadPlan(
        concurrencies=numbers(concurrency, "--concurrency"),
        requests=requests,
        seconds=seconds,
        repeats=repeats,
        max_tokens=max_tokens,
        prompt_words=prompt_words,
        prompts=prompts,
        endpoint=endpoint,
        mask_mix=mask_mix,
        threads=threads,
        force=force,
    )
    plan.check()
    folder = out or Path("results") / time.strftime("serve-%Y%m%d-%H%M%S")
    with engine_pair(dense, sparse, model, named_masks(mask or [])) as directories:
        path = _compare(*directories, plan, folder)
    finish(path, json_)


def _compare(dense: Path, sparse: Path, plan: LoadPlan, folder: Path) -> Path:
    """Run it, show it, write the result file."""
    import dataclasses

    from rich.console import Console

    from benchmarks.common.arm_process import ArmError
    from benchmarks.common.result_file import this_command, write_result
    from benchmarks.serve.compare import ComparisonError, compare_arms
    from benchmarks.serve.page import serve_page
    from benchmarks.serve.report import notes, result_fields, table
    from loadtests.calibration import CalibrationError
    from loadtests.client import LoadError

    console = Console()
    try:
        comparison = compare_arms(dense, sparse, plan, folder, say)
    except (ComparisonError, ArmError, CalibrationError, LoadError) as error:
        typer.secho(f"error: {error}\nlogs and samples so far: {folder}", fg="red", err=True)
        raise typer.Exit(1) from error
    console.print(table(comparison))
    for line in notes(comparison):
        console.print(line, highlight=False, soft_wrap=True)
    return write_result(
        "serve",
        serve_page,
        [dataclasses.asdict(row) for row in comparison.rows],
        command=this_command(),
        **result_fields(comparison, plan),
    )
