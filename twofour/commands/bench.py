"""`twofour bench`: the commands that produce every number that the docs quote."""

from __future__ import annotations

import typer

from twofour.commands import bench_serve

app = typer.Typer(help="Measure: every number that the docs quote.", no_args_is_help=True)
app.command("serve")(bench_serve.serve)


@app.callback()
def _bench() -> None:
    """Keeps `serve` a subcommand while it is the only one."""
