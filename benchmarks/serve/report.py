"""Shows a comparison of servers as a table, and as the object that programs read."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table

from benchmarks.serve.compare import BASELINE, LoadPlan, ServeComparison
from benchmarks.serve.server_process import ServerReport
from loadtests.comparison import ComparisonRow


def table(comparison: ServeComparison) -> Table:
    """Throughput, latency and ratio of every arm."""
    shown = Table(title="dense and sparse server, measured in turns over HTTP")
    shown.add_column("arm")
    for heading in (
        "users",
        "tokens/s",
        "TTFT p50 ms",
        "TPOT p50 ms",
        "times dense",
        "95 % from - to",
    ):
        shown.add_column(heading, justify="right")
    for row in comparison.rows:
        shown.add_row(
            row.arm,
            str(row.concurrency),
            f"{row.tokens_per_s:.1f}",
            f"{row.ttft_p50_ms:.1f}",
            f"{row.tpot_p50_ms:.2f}",
            f"{row.ratio:.2f}",
            _interval(row),
        )
    return shown


def notes(comparison: ServeComparison) -> list[str]:
    """What the numbers rest on: kernels, memory, bias of the load generator, raw samples."""
    bias = comparison.calibration
    return [
        *(_describe(report) for report in comparison.servers.values()),
        f"load generator: adds {bias.ttft_ms:.1f} ms to TTFT, "
        f"{bias.token_p90_ms:.1f} ms to 90 % of the tokens (limit 5); "
        f"takes {max(row.client_cpu_share for row in comparison.rows):.0%} of a core",
        f"other processes: at most {comparison.other_cpu_share:.1%} of the CPU",
        f"raw samples: {comparison.folder}",
    ]


def result_fields(comparison: ServeComparison, plan: LoadPlan) -> dict[str, Any]:
    """Fields of the result file beside its rows."""
    return {
        "other_cpu_share": comparison.other_cpu_share,
        "plan": {
            key: str(value) if key == "prompts" and value else value
            for key, value in dataclasses.asdict(plan).items()
        },
        "servers": {
            # The folder of an engine says nothing on another machine.
            arm: {k: v for k, v in dataclasses.asdict(report).items() if k != "directory"}
            | {"sparse_share": report.sparse_share}
            for arm, report in comparison.servers.items()
        },
        "calibration": dataclasses.asdict(comparison.calibration),
    }


def _describe(report: ServerReport) -> str:
    memory = (
        f"weights {report.weight_bytes / 2**20:.0f} MiB, process {report.rss_bytes / 2**20:.0f} MiB"
    )
    if report.layout is None:
        return f"{report.arm}: dense kernels, {report.isa}; {memory}"
    return (
        f"{report.arm}: {report.sparse_layers} of {report.eligible_layers} eligible layers "
        f"({report.sparse_share:.0%}) on the sparse kernel, {report.isa}, layout {report.layout}; "
        f"{memory}"
    )


def _interval(row: ComparisonRow) -> str:
    if row.arm == BASELINE or row.ratio_low is None or row.ratio_high is None:
        return "-"
    return f"{row.ratio_low:.2f} - {row.ratio_high:.2f}"
