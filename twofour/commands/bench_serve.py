"""`twofour bench serve`: a dense and a sparse server, measured in turns over HTTP."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from benchmarks.serve.compare import Plan

_Option = typer.Option


def serve(
    dense: Annotated[Path | None, _Option(help="Engine directory without masks.")] = None,
    sparse: Annotated[Path | None, _Option(help="Engine directory of the same model.")] = None,
    model: Annotated[
        str | None, _Option(help="Instead of both: build them from this model and --mask.")
    ] = None,
    mask: Annotated[
        list[str] | None, _Option(help="NAME=FILE or FILE, as `twofour build` takes them.")
    ] = None,
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
    json_: Annotated[
        bool, _Option("--json", help="Print the result as JSON, as the last line.")
    ] = False,
) -> None:
    """Measure a dense and a sparse server in turns, and write docs/results/serve.json."""
    from benchmarks.serve.compare import Plan

    if endpoint not in ("completions", "chat"):
        raise ValueError(f"--endpoint {endpoint!r}: must be completions or chat")
    plan = Plan(
        concurrencies=_numbers(concurrency),
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
    with _engines(dense, sparse, model, mask or []) as (dense_dir, sparse_dir):
        result = _compare(dense_dir, sparse_dir, plan, folder)
    if json_:
        typer.echo(json.dumps(json.loads(result.read_text(encoding="utf-8"))))


def _compare(dense: Path, sparse: Path, plan: Plan, folder: Path) -> Path:
    """Run it, show it, write the result file."""
    import dataclasses

    from rich.console import Console

    from benchmarks.common.result_file import write_result
    from benchmarks.serve.compare import ComparisonError, compare_arms
    from benchmarks.serve.report import notes, result_fields, table
    from benchmarks.serve.server_process import ServerError
    from loadtests.calibration import CalibrationError
    from loadtests.client import LoadError

    console = Console()
    try:
        comparison = compare_arms(
            dense, sparse, plan, folder, lambda line: typer.echo(line, err=True)
        )
    except (ComparisonError, ServerError, CalibrationError, LoadError) as error:
        typer.secho(f"error: {error}\nlogs and samples so far: {folder}", fg="red", err=True)
        raise typer.Exit(1) from error
    console.print(table(comparison))
    for line in notes(comparison):
        console.print(line, highlight=False, soft_wrap=True)
    path = write_result(
        "serve",
        shlex.join(["twofour", *sys.argv[1:]]),
        [dataclasses.asdict(row) for row in comparison.rows],
        **result_fields(comparison, plan),
    )
    console.print(f"result: {path}", highlight=False, soft_wrap=True)
    return path


@contextmanager
def _engines(
    dense: Path | None, sparse: Path | None, model: str | None, masks: list[str]
) -> Iterator[tuple[Path, Path]]:
    """The two engine directories: given, or built for the time of the comparison."""
    if model is None:
        if dense is None or sparse is None or masks:
            raise ValueError("give --dense and --sparse, or --model and --mask")
        yield dense, sparse
        return
    if dense is not None or sparse is not None or not masks:
        raise ValueError("give --model with at least one --mask, without --dense and --sparse")
    with tempfile.TemporaryDirectory(prefix="twofour-bench-") as folder:
        yield _build(model, [], Path(folder) / "dense"), _build(model, masks, Path(folder) / "s")


def _build(model: str, masks: list[str], out: Path) -> Path:
    from twofour.commands.build import build

    build(model=model, out=out, mask=masks)
    return out


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--concurrency {text!r}: expected numbers such as 1,8") from error
