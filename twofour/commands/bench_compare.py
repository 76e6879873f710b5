"""`twofour bench compare`: do two load tests differ beyond noise?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twofour.commands.bench_options import JsonLine

if TYPE_CHECKING:
    from benchmarks.serve.change import ServeChange

_Option = typer.Option


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of `twofour bench serve` to compare with.")],
    second: Annotated[Path, typer.Argument(help="The folder in question.")],
    tolerance: Annotated[
        float, _Option(help="Changes up to this share do not matter, however sure.")
    ] = 0.03,
    either_way: Annotated[
        bool, _Option("--either-way", help="Fail on what got better, too, not on worse alone.")
    ] = False,
    json_: JsonLine = False,
) -> None:
    """Compare two load tests. Exit code 0: no worse beyond noise; 1: worse; 2: incomparable."""
    from benchmarks.serve.change import IncomparableError, changes_between
    from benchmarks.serve.folder import read_folder

    try:
        folders = read_folder(first), read_folder(second)
    except ValueError as error:
        raise IncomparableError(str(error)) from error
    changes = changes_between(*folders, tolerance)
    _show(changes)
    for folder in folders:
        if doubts := folder.result["doubts"]:
            typer.echo(f"{folder.path} was disturbed and forced: {doubts[0]}")
    compared = {(change.arm, change.point) for change in changes}
    for arm, point in dict.fromkeys((b.arm, b.point) for b in folders[0].blocks):
        if (arm, point) not in compared:
            typer.echo(f"only in {first}: {arm}, {point}")
    typer.echo(_verdict(changes))
    if json_:
        typer.echo(json.dumps([dataclasses.asdict(change) for change in changes]))
    failed = [c for c in changes if c.worse or (either_way and c.beyond_noise)]
    raise typer.Exit(1 if failed else 0)


def _show(changes: Sequence[ServeChange]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("arm")
    table.add_column("load")
    table.add_column("figure")
    for heading in ("first", "second", "change", "95 % from - to", "p", "beyond noise"):
        table.add_column(heading, justify="right")
    for c in changes:
        table.add_row(
            c.arm,
            str(c.point),
            c.figure,
            f"{c.first:.4g}",
            f"{c.second:.4g}",
            f"{c.change - 1:+.1%}",
            f"{c.low - 1:+.1%} - {c.high - 1:+.1%}",
            f"{c.p:.2g}",
            ("worse" if c.worse else "better") if c.beyond_noise else "",
        )
    Console(width=160).print(table)


def _verdict(changes: Sequence[ServeChange]) -> str:
    worse = sum(c.worse for c in changes)
    better = sum(c.beyond_noise and not c.worse for c in changes)
    return (
        f"{len(changes)} figures compared: {worse} worse and {better} better beyond noise, "
        f"{len(changes) - worse - better} within it"
    )
