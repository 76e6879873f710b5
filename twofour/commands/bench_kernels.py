"""`twofour bench kernels`: the sparse kernels beside the best dense ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from twofour.commands.bench_options import JsonLine, KeepRows, finish
from twofour.commands.option_values import number_pairs, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    keep: KeepRows = False,
    plot: Annotated[bool, _Option(help="Draw docs/results/kernels-roofline.png too.")] = False,
    lowbit: Annotated[
        bool, _Option(help="Measure int8 and int4 instead (docs/results/kernels-lowbit.json).")
    ] = False,
    block: Annotated[int, _Option(help="With --lowbit: inputs that share a scale.")] = 64,
    minima: Annotated[bool, _Option(help="With --lowbit: int4 with minima.")] = False,
    force: Annotated[bool, _Option(help="Measure although other processes are busy.")] = False,
    json_: JsonLine = False,
) -> None:
    """Measure the kernels (docs/results/kernels.json, with --lowbit kernels-lowbit.json)."""
    import psutil
    from rich.console import Console

    from benchmarks.common.machine import require_quiet
    from benchmarks.common.result_file import RESULTS
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.kernels import lowbit as lowbit_bench
    from benchmarks.kernels import measure as bench
    from benchmarks.kernels import report
    from benchmarks.kernels.page import kernels_page
    from engines.native.kernels import supported_isas

    console = Console(stderr=json_)
    if not console.is_terminal:
        console = Console(stderr=json_, width=140)
    available = supported_isas()
    chosen = list(available) if isa == "all" else [isa or available[-1]]
    if unknown := [name for name in chosen if name not in available]:
        raise ValueError(f"--isa {unknown[0]}: this machine has {', '.join(available)}, or all")
    cores = psutil.cpu_count(logical=False) or 1
    counts = numbers(threads, "--threads") if threads else tuple(sorted({1, cores}))
    layers = number_pairs(shapes, "--shapes", "x") if shapes else bench.SHAPES
    unit = 32 if lowbit else 4
    if uneven := [f"{n}x{k}" for n, k in layers if k % unit]:
        raise ValueError(
            f"--shapes {uneven[0]!r}: inputs must be a multiple of {unit}, as 4096x4096"
        )
    batches = numbers(tokens, "--tokens") if tokens else bench.TOKEN_COUNTS
    if lowbit:
        if plot:
            raise ValueError("--plot draws bf16's kernels; leave out one of --plot and --lowbit")
        table = Table(lowbit_bench.TABLE, Earlier.KEEP if keep else Earlier.DROP)
        require_quiet(force)
        lowbit_rows = lowbit_bench.measure(
            layers,
            batches,
            counts,
            chosen,
            block=block,
            minima=minima,
            seconds=seconds,
            progress=console.log,
        )
        path = table.put(row.as_dict() for row in lowbit_rows)
        for line in lowbit_bench.misses(table.rows()):
            console.print(f"below target: {line}")
        finish(path, json_)
        return
    alternation: list[dict[str, Any]] = []

    def facts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        found = {
            "alternation": alternation,
            "below_target": report.misses([bench.KernelRow(**row) for row in rows]),
        }
        return found | ({"picture": report.PICTURE} if plot else {})

    spec = TableSpec("kernels", bench.KEY, kernels_page, facts)
    table = Table(spec, Earlier.KEEP if keep else Earlier.DROP)
    require_quiet(force)
    measured = bench.measure(layers, batches, counts, chosen, seconds=seconds, progress=console.log)
    alternation += bench.measure_alternation(counts[-1], seconds=4 * seconds)
    path = table.put(row.as_dict() for row in measured)
    rows = [bench.KernelRow(**row) for row in table.rows()]
    console.print(report.table(rows))
    for line in report.misses(rows):
        console.print(f"below target: {line}")
    if plot:
        report.plot_roofline(rows, RESULTS / report.PICTURE)
    finish(path, json_)
