"""`twofour bench pages` and `picture`: what is made of results that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.bench_options import say
from twofour.commands.option_values import number_pairs


def pages() -> None:
    """Write the pages of docs/results anew, and the tables of results that guides show.

    Run it in the repository.
    """
    from benchmarks.common.result_file import RESULTS
    from benchmarks.guides import fill_guides
    from benchmarks.pages import write_pages

    if not RESULTS.is_dir():
        raise FileNotFoundError(f"{RESULTS} is not here: run this in the repository")
    for path in (*write_pages(), *fill_guides(Path())):
        typer.echo(path)


def models() -> None:
    """Write docs/results/models.json: families of models and what runs them."""
    from benchmarks.common.result_file import this_command, write_result
    from benchmarks.families import family_rows, models_page

    typer.echo(write_result("models", models_page, family_rows(), command=this_command()))


def picture(
    cell: Annotated[str, typer.Option(help="PROMPT/OUTPUT tokens of the speeds.")] = "128/128",
    concurrency: Annotated[int, typer.Option(help="Requests at a time.", min=1)] = 1,
) -> None:
    """Draw quality against speed and size, from quality.json and bench-engine.json."""
    from benchmarks.engine.picture import draw_results

    for line in draw_results((*number_pairs(cell, "--cell", "/")[0], concurrency)):
        say(line)
