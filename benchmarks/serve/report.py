"""Shows a comparison of servers as a table."""

from __future__ import annotations

from rich.table import Table

from benchmarks.common.page import shortened
from benchmarks.common.result_file import ResultData
from benchmarks.common.server_process import ServerReport
from benchmarks.serve.compare import ServeComparison
from benchmarks.serve.paper_table import paper_table
from loadtests.comparison import ComparisonRow


def table(comparison: ServeComparison) -> Table:
    """Throughput, latency and ratio of every arm."""
    shown = Table(title="servers, measured in turns over HTTP")
    shown.add_column("arm")
    for heading in (
        "tokens in / out",
        "load",
        "tokens/s",
        "TTFT p50 ms",
        "TPOT p50 ms",
        f"times {comparison.reference}",
        "95 % from - to",
    ):
        shown.add_column(heading, justify="right")
    for row in comparison.rows:
        shown.add_row(
            row.arm,
            row.lengths,
            f"{row.rate:g}/s" if row.rate is not None else str(row.concurrency or "trace"),
            f"{row.tokens_per_s:.1f}",
            _milliseconds(row.ttft_p50_ms, 1),
            _milliseconds(row.tpot_p50_ms, 2),
            f"{row.ratio:.2f}",
            _interval(row, comparison.reference),
        )
    return shown


def paper_lines(result: ResultData) -> Table | None:
    """MaskLLM's table beside what was measured; None when the result is not of the preset."""
    found = paper_table(result)
    if found is None:
        return None
    headings, lines = found
    shown = Table(title="generated tokens/s, as in MaskLLM's table (the paper's: A6000)")
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == headings[0] else "right")
    for line in lines:
        shown.add_row(*line)
    return shown


def notes(comparison: ServeComparison) -> list[str]:
    """What the numbers rest on: kernels, memory, bias of the load generator, raw samples."""
    bias = comparison.calibration
    busiest = max((row.client_cpu_share for row in comparison.rows), default=0.0)
    return [
        *(_describe(report) for report in comparison.servers.values()),
        *(f"{r.arm}: {r.url}, models {', '.join(r.models)}" for r in comparison.others.values()),
        f"load generator: adds {bias.ttft_ms:.1f} ms to TTFT, "
        f"{bias.token_p90_ms:.1f} ms to 90 % of the tokens (limit 5); "
        f"takes {busiest:.0%} of a core",
        f"other processes: at most {comparison.other_cpu_share:.1%} of the CPU",
        *(f"void: {problem}" for problem in shortened(comparison.problems)),
        *(f"forced: {doubt}" for doubt in shortened(comparison.doubts)),
        f"raw samples: {comparison.folder}",
    ]


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


def _milliseconds(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(row: ComparisonRow, reference: str) -> str:
    if row.arm == reference or row.ratio_low is None or row.ratio_high is None:
        return "-"
    return f"{row.ratio_low:.2f} - {row.ratio_high:.2f}"
