"""`twofour bench pages` and `picture`: what is made of results that are there already."""

from __future__ import annotations

from pathlib import Path

import typer

from twofour.commands.bench_options import say


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


def picture() -> None:
    """Draw quality against speed and bytes, from lowbit-quality.json."""
    from benchmarks.values.picture import draw_results

    for line in draw_results():
        say(line)
