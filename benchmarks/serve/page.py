"""The page of docs/results/serve.json."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import markdown_table, number, page, paragraph, percent
from benchmarks.common.result_file import ResultData, ResultRow

_ABOUT = """
A dense and a sparse server of the same model, measured in turns over HTTP by locust. Times are
taken by the client, tokens counted by the server. *Times dense* is the geometric mean of the
paired blocks' ratios, with its 95 % interval.
"""


def serve_page(result: ResultData) -> str:
    """Throughput, latency and ratio by arm and users; what ran; the load generator's own part."""
    bias = result["calibration"]
    return page(
        "Dense and sparse over HTTP",
        _ABOUT,
        result,
        serve_table(result["rows"]),
        "## What ran",
        _servers(result),
        paragraph(
            f"The load generator adds {bias['ttft_ms']:.1f} ms to the time to first token and"
            f" {bias['token_p90_ms']:.1f} ms to nine tokens in ten."
        ),
    )


def serve_table(rows: Sequence[ResultRow]) -> str:
    """Throughput, latency and ratio by arm and users."""
    return markdown_table(
        ["arm", "users", "tokens/s", "TTFT p50, ms", "TPOT p50, ms", "times dense", "95 %"],
        [
            [
                row["arm"],
                row["concurrency"],
                number(row["tokens_per_s"]),
                number(row["ttft_p50_ms"]),
                number(row["tpot_p50_ms"]),
                f"{row['ratio']:.2f}",
                _interval(row),
            ]
            for row in rows
        ],
    )


def _interval(row: ResultRow) -> str:
    if row["arm"] == "dense" or row["ratio_low"] is None or row["ratio_high"] is None:
        return ""
    return f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"


def _servers(result: ResultData) -> str:
    return markdown_table(
        ["arm", "sparse layers", "instruction set", "weights, MiB", "process, MiB"],
        [
            [
                arm,
                f"{server['sparse_layers']} ({percent(server['sparse_share'])})",
                server["isa"],
                f"{server['weight_bytes'] / 2**20:.0f}",
                f"{server['rss_bytes'] / 2**20:.0f}",
            ]
            for arm, server in result["servers"].items()
        ],
    )
