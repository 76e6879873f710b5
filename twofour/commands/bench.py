"""`twofour bench`: the commands that measure everything in docs/results."""

from __future__ import annotations

import signal
import sys

import typer

from twofour.commands import (
    bench_agreement,
    bench_compare,
    bench_engine,
    bench_export,
    bench_kernels,
    bench_masks,
    bench_overhead,
    bench_pages,
    bench_quality,
    bench_reliability,
    bench_serve,
    bench_trtllm,
    bench_values,
    bench_vllm,
)

app = typer.Typer(help="Measure: everything in docs/results.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure: everything in docs/results."""
    # Ended from outside, it still lets go on, and ends, the arms that wait stopped for their turn.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


app.command("kernels")(bench_kernels.kernels)
app.add_typer(bench_engine.app, name="engine")
app.command("quality")(bench_quality.quality)
app.command("export")(bench_export.export)
app.command("values")(bench_values.values)
app.add_typer(bench_masks.app, name="masks")
app.command("serve")(bench_serve.serve)
app.command("overhead")(bench_overhead.overhead)
app.command("reliability")(bench_reliability.reliability)
app.command("agreement")(bench_agreement.agreement)
app.command("compare")(bench_compare.compare)
app.command("report")(bench_serve.report)
app.add_typer(bench_vllm.app, name="vllm")
app.command("trtllm")(bench_trtllm.trtllm)
app.command("models")(bench_pages.models)
app.command("pages")(bench_pages.pages)
app.command("picture")(bench_pages.picture)
