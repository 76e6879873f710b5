"""`twofour bench serve`: servers measured in turns over HTTP."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twofour.commands.bench_options import Dense, JsonLine, Masks, Sparse, finish, say
from twofour.commands.option_values import named_masks, number_pairs, numbers

if TYPE_CHECKING:
    from benchmarks.serve.arms import Arm
    from benchmarks.serve.plan import LoadPlan

_Option = typer.Option


def serve(
    dense: Dense = None,
    sparse: Sparse = None,
    arm: Annotated[
        list[str] | None,
        _Option(
            help="Another arm (repeat): NAME=DIR, an engine directory, NAME=DIR@uniform:A,B with"
            " masks for its requests, or NAME=http://HOST:PORT[#MODEL], a server that runs."
        ),
    ] = None,
    reference: Annotated[
        str | None, _Option(help="The arm that ratios are taken against. [dense, or the first]")
    ] = None,
    model: Annotated[
        str | None, _Option(help="Instead of both: build them from this model and --mask.")
    ] = None,
    mask: Masks = None,
    preset: Annotated[
        str | None,
        _Option(help="maskllm: the paper's lengths, one request at a time; maskllm/8: an eighth."),
    ] = None,
    concurrency: Annotated[
        str | None, _Option(help="Users at a time, separated by commas. [1,8]")
    ] = None,
    rate: Annotated[
        str | None,
        _Option(help="Instead: open loop of so many requests per second, separated by commas."),
    ] = None,
    requests: Annotated[
        int | None, _Option(help="Measured requests of a block. [2 per user, at least 4; open: 64]")
    ] = None,
    repeats: Annotated[int, _Option(help="Blocks of every arm at every load.")] = 3,
    prompts: Annotated[
        Path | None,
        _Option(help="Prompts: a line each, *.jsonl with a prompt field, *.json of ShareGPT."),
    ] = None,
    lengths: Annotated[
        str | None,
        _Option(help="Instead: random prompts of exact length, PROMPT/OUTPUT tokens, as 128/128."),
    ] = None,
    trace: Annotated[
        Path | None, _Option(help="Open loop by a trace: Mooncake's *.jsonl or Azure's *.csv.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        _Option(
            "--set",
            help="Any other setting of the load, NAME=VALUE, as max_tokens=64, endpoint=chat,"
            " workers=2, trace_speed=10 or mask_mix=uniform:a,b (repeat).",
        ),
    ] = None,
    out: Annotated[
        Path | None, _Option(help="New folder for everything. [results/serve-TIME]")
    ] = None,
    result: Annotated[
        str | None, _Option(help="Also write docs/results/NAME.json and its page; serve, serve-X.")
    ] = None,
    force: Annotated[bool, _Option(help="Measure on a busy machine all the same.")] = False,
    json_: JsonLine = False,
) -> None:
    """Measure servers in turns; a folder gets raw samples, serve.json and report.html."""
    from benchmarks.serve.plan import read_plan

    if result is not None and not re.fullmatch(r"serve(-[\w.-]+)?", result):
        raise ValueError(f"--result {result!r}: must be serve or begin with serve-")
    if preset and (lengths or concurrency or rate or trace or prompts):
        raise ValueError(
            "--preset says what prompts are and how many run: give no --lengths, --concurrency, "
            "--rate, --trace or --prompts with it"
        )
    plan = read_plan(
        {
            "concurrencies": (1,) if preset else numbers(concurrency or "1,8", "--concurrency"),
            "preset": preset,
            "rates": _rates(rate) if rate else (),
            "requests": requests,
            "repeats": repeats,
            "prompts": prompts,
            "lengths": _lengths(lengths, preset),
            "trace": trace,
            "force": force,
        },
        settings or [],
    )
    plan.check()
    folder = out or Path("results") / time.strftime("serve-%Y%m%d-%H%M%S")
    with _arms(dense, sparse, arm or [], model, mask or []) as arms:
        names = [arm.name for arm in arms]
        chosen = reference or ("dense" if "dense" in names else names[0])
        path = _compare(arms, chosen, plan, folder, result)
    finish(path, json_)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `twofour bench serve` wrote.")],
) -> None:
    """Draw a folder's report.html again from its serve.json and raw samples."""
    from benchmarks.serve.folder import write_report

    typer.echo(f"wrote {write_report(folder)}")


@contextmanager
def _arms(
    dense: Path | None,
    sparse: Path | None,
    further: Sequence[str],
    model: str | None,
    masks: Sequence[str],
) -> Iterator[list[Arm]]:
    """The arms that the options name; what is built for them goes away again.

    Raises:
        ValueError: none are named, or both directories and a model.
    """
    from contextlib import nullcontext

    from benchmarks.common.engine_directories import engine_pair
    from benchmarks.serve.arms import Arm

    named = [Arm.parse(text) for text in further]
    given = named or dense is not None or sparse is not None
    built = None
    if model is not None or masks or not given:
        built = engine_pair(dense, sparse, model, named_masks(masks))
    with built or nullcontext((dense, sparse)) as (dense_directory, sparse_directory):
        pair = []
        if dense_directory is not None:
            pair.append(Arm("dense", dense_directory, kind="dense"))
        if sparse_directory is not None:
            pair.append(Arm("sparse", sparse_directory, kind="sparse"))
        yield [*pair, *named]


def _compare(
    arms: Sequence[Arm], reference: str, plan: LoadPlan, folder: Path, result: str | None
) -> Path:
    """Run it, show it, write the folder; gives the result file."""
    from rich.console import Console

    from benchmarks.common.arm_process import ArmError
    from benchmarks.common.result_file import read_result
    from benchmarks.serve.arms import ComparisonError
    from benchmarks.serve.compare import compare_arms
    from benchmarks.serve.folder import publish, write_folder, write_report
    from benchmarks.serve.report import notes, paper_lines, table
    from loadtests.client import LoadError
    from loadtests.client_calibration import CalibrationError

    console = Console()
    try:
        comparison = compare_arms(arms, plan, folder, say, reference)
    except (ComparisonError, ArmError, CalibrationError, LoadError) as error:
        typer.secho(f"error: {error}\nlogs and samples so far: {folder}", fg="red", err=True)
        raise typer.Exit(1) from error
    path = write_folder(comparison, arms, plan)
    drawn = write_report(folder)
    console.print(table(comparison))
    if paper := paper_lines(read_result(path)):
        console.print(paper)
    for line in notes(comparison):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"report: {drawn}", highlight=False, soft_wrap=True)
    if comparison.problems:
        typer.secho(f"error: {'; '.join(comparison.problems)}", fg="red", err=True)
        raise typer.Exit(1)
    return publish(path, result) if result else path


def _lengths(lengths: str | None, preset: str | None) -> tuple[tuple[int, int], ...]:
    from benchmarks.serve.paper_table import preset_lengths

    if preset:
        return preset_lengths(preset)
    return number_pairs(lengths, "--lengths", "/") if lengths else ()


def _rates(text: str) -> tuple[float, ...]:
    """`0.5,1,2` -> the rates.

    Raises:
        ValueError: not positive numbers, separated by commas.
    """
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not min(rates) > 0:
        raise ValueError(
            f"--rate {text!r}: must be positive numbers, separated by commas, as 0.5,2"
        )
    return rates
