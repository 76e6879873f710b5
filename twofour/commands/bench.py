"""`twofour bench`: the commands that produce every number that the docs quote."""

from __future__ import annotations

import typer

from twofour.commands import (
    bench_engine,
    bench_kernels,
    bench_masks,
    bench_serve,
    bench_trtllm,
)

app = typer.Typer(help="Measure: every number that the docs quote.", no_args_is_help=True)
app.command("kernels")(bench_kernels.kernels)
app.command("engine")(bench_engine.engine)
app.command("masks")(bench_masks.masks)
app.command("serve")(bench_serve.serve)
app.command("trtllm")(bench_trtllm.trtllm)
