"""`twofour bench kernels`: the sparse kernels beside the best dense ones."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from benchmarks.kernels.measure import Row

_Option = typer.Option


def kernels(
    shapes: Annotated[
        str | None, _Option(help="NxK,...: outputs x inputs. [eight shapes of real layers]")
    ] = None,
    tokens: Annotated[str | None, _Option(help="Tokens, separated by commas.")] = None,
    threads: Annotated[
        str | None, _Option(help="OpenMP threads, separated by commas. [1 and all cores]")
    ] = None,
    isa: Annotated[
        str | None, _Option(help="Instruction set, or all. [the best of this machine]")
    ] = None,
    seconds: Annotated[float, _Option(help="Time for one row.")] = 1.0,
    keep: Annotated[
        bool, _Option(help="Keep earlier rows of docs/results/kernels.json not measured now.")
    ] = False,
    plot: Annotated[bool, _Option(help="Draw docs/results/kernels-roofline.png too.")] = False,
    force: Annotated[bool, _Option(help="Measure although other processes are busy.")] = False,
    json_: Annotated[
        bool, _Option("--json", help="Print the result as JSON, as the last line.")
    ] = False,
) -> None:
    """Measure the kernels and write docs/results/kernels.json."""
    import psutil
    from rich.console import Console

    from benchmarks.common.machine import OtherCpu
    from benchmarks.common.result_file import RESULTS, write_result
    from benchmarks.kernels import measure as bench
    from benchmarks.kernels import report
    from engines.kernels import supported_isas

    console = Console(stderr=json_)
    if not console.is_terminal:
        console = Console(stderr=json_, width=140)
    available = supported_isas()
    chosen = list(available) if isa == "all" else [isa or available[-1]]
    if unknown := [name for name in chosen if name not in available]:
        raise ValueError(f"--isa {unknown[0]}: this machine has {', '.join(available)}, or all")
    cores = psutil.cpu_count(logical=False) or 1
    counts = _numbers(threads, "--threads") or sorted({1, cores})
    layers = _shapes(shapes) or list(bench.SHAPES)
    batches = _numbers(tokens, "--tokens") or list(bench.TOKENS)
    bench.require_quiet(force)
    with OtherCpu() as other:
        rows = bench.measure(
            layers,
            batches,
            counts,
            chosen,
            seconds=seconds,
            progress=lambda line: console.log(line),
        )
        alternation = bench.measure_alternation(counts[-1], seconds=4 * seconds)
    if keep:
        rows = _merged(RESULTS / "kernels.json", rows)
    console.print(report.table(rows))
    missed = report.misses(rows)
    for line in missed:
        console.print(f"below target: {line}")
    if plot:
        report.plot_roofline(rows, RESULTS / "kernels-roofline.png")
    path = write_result(
        "kernels",
        "twofour " + shlex.join(sys.argv[1:]),
        [row.as_dict() for row in rows],
        other_cpu_share=round(other.share, 4),
        alternation=alternation,
        below_target=missed,
    )
    console.print(f"wrote {path}; other processes used {other.share:.1%} of the cores")
    if json_:
        typer.echo(json.dumps(json.loads(path.read_text())))


def _merged(path: Path, rows: list[Row]) -> list[Row]:
    from benchmarks.kernels.measure import Row as KernelRow

    if not path.exists():
        return rows
    new = {row.key for row in rows}
    earlier = [KernelRow(**fields) for fields in json.loads(path.read_text())["rows"]]
    return [row for row in earlier if row.key not in new] + rows


def _numbers(text: str | None, option: str) -> list[int]:
    if text is None:
        return []
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise ValueError(f"{option} {text!r}: must be numbers from 1, separated by commas")
    return [int(part) for part in text.split(",")]


def _shapes(text: str | None) -> list[tuple[int, int]]:
    if text is None:
        return []
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", part)
        if match is None or int(match[2]) % 4:
            raise ValueError(
                f"--shapes {part!r}: must be OUTPUTSxINPUTS, inputs a multiple of 4, as 4096x4096"
            )
        found.append((int(match[1]), int(match[2])))
    return found
