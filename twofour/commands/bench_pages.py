"""`twofour bench pages` and `picture`: what is made of results that are there already."""

from __future__ import annotations

from typing import Annotated

import typer

from twofour.commands.bench_options import say
from twofour.commands.option_values import number_pairs


def pages() -> None:
    """Write the page of every result file in docs/results anew."""
    from benchmarks.pages import write_pages

    for path in write_pages():
        typer.echo(path)


def picture(
    cell: Annotated[str, typer.Option(help="PROMPT/OUTPUT tokens of the speeds.")] = "128/128",
    concurrency: Annotated[int, typer.Option(help="Requests at a time.", min=1)] = 1,
) -> None:
    """Draw quality against speed and size, from quality.json and bench-engine.json."""
    from benchmarks.engine.picture import draw_results

    for line in draw_results((*number_pairs(cell, "--cell", "/")[0], concurrency)):
        say(line)
