"""`twofour bench overhead`: what the server costs over the engine called directly."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.bench_options import (
    Concurrency,
    JsonLine,
    KeepRows,
    KvMib,
    Masks,
    Repeats,
    Threads,
    finish,
    say,
)
from twofour.commands.option_values import named_masks, number_pairs, numbers

_Option = typer.Option


def overhead(
    sparse: Annotated[Path | None, _Option(help="Engine directory for the CPU.")] = None,
    model: Annotated[
        str | None, _Option(help="Instead: build it from this model and --mask.")
    ] = None,
    mask: Masks = None,
    lengths: Annotated[str, _Option(help="Prompt/output tokens.")] = "128/128",
    concurrency: Concurrency = "1,8,32",
    repeats: Repeats = 9,
    threads: Threads = 0,
    kv_mib: KvMib = 1024,
    keep: KeepRows = False,
    json_: JsonLine = False,
) -> None:
    """Measure the server against the engine called directly (docs/results/overhead.json)."""
    from benchmarks.common.engine_directories import build_engine
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.engine.arms import engine_command, engine_options
    from benchmarks.engine.speed import SpeedPlan
    from benchmarks.overhead.measure import KEY, OverheadPlan, measure_overhead
    from benchmarks.overhead.page import overhead_page
    from engines.directory.decoder_config import read_decoder_config
    from engines.directory.manifest import read_manifest

    pairs = number_pairs(lengths, "--lengths", "/")
    if len(pairs) > 1:
        raise ValueError(f"--lengths {lengths!r}: give one pair")
    if (sparse is None) == (model is None):
        raise ValueError("give --sparse, or --model and --mask")
    cores = threads or len(os.sched_getaffinity(0))
    speed = SpeedPlan(pairs, numbers(concurrency, "--concurrency"), repeats, cores, kv_mib)
    with tempfile.TemporaryDirectory(prefix="twofour-overhead-") as folder:
        directory = sparse or build_engine(
            str(model), named_masks(mask or []), Path(folder) / "engine"
        )
        plan = OverheadPlan(
            *pairs[0],
            concurrencies=speed.concurrencies,
            repeats=repeats,
            threads=cores,
            vocabulary=read_decoder_config(directory).vocab,
        )
        spec = TableSpec(
            "overhead", KEY, overhead_page, lambda rows: {"model": read_manifest(directory).model}
        )
        table = Table(spec, Earlier.KEEP if keep else Earlier.DROP)
        served = [
            word
            for name, value in engine_options(speed).items()
            for word in ("--engine-option", f"{name}={str(value).lower()}")
        ]
        log = Path(folder) / "server.log"
        command = engine_command(directory, speed)
        for row in measure_overhead(command, directory, served, plan, log, say):
            table.put([row])
            say(
                f"  engine {row['engine_tokens_per_s']:8.1f} tokens/s  http"
                f" {row['http_tokens_per_s']:8.1f}  ratio {row['ratio']:.3f}"
                f" ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})  first token"
                f" +{row['added_ttft_ms']:.2f} ms  CPU, ms a token: engine"
                f" {row['engine_cpu_ms']:.3f}, server {row['server_cpu_ms']:.3f}, client"
                f" {row['client_cpu_ms']:.3f}  others {row['other_cpu_share']:.1%}"
            )
    finish(table.path, json_)
