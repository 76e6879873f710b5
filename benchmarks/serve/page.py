"""The page of docs/results/serve.json."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import (
    bullets,
    markdown_picture,
    markdown_table,
    number,
    page,
    paragraph,
    percent,
    shortened,
)
from benchmarks.common.result_file import ResultData, ResultRow
from benchmarks.serve.paper_table import PAPER_NOTE, paper_table

_ABOUT = """
Servers of one model, measured in turns over HTTP by locust. Times are taken by the client, tokens
counted by the server. The ratio is the geometric mean of the paired blocks' ratios of tokens/s,
with its 95 % interval.
"""


def serve_page(result: ResultData) -> str:
    """Throughput, latency and ratio by arm and load; what ran; the load generator's own part."""
    bias = result["calibration"]
    return page(
        "Dense and sparse over HTTP",
        _ABOUT,
        result,
        _verdict(result),
        serve_table(result["rows"]),
        markdown_picture(result),
        *_paper(result),
        "## What ran",
        _servers(result),
        paragraph(
            f"The load generator adds {bias['ttft_ms']:.1f} ms to the time to first token and"
            f" {bias['token_p90_ms']:.1f} ms to nine tokens in ten."
        ),
    )


def serve_table(rows: Sequence[ResultRow]) -> str:
    """Throughput, latency and ratio by arm and load; lengths where there are several."""
    lengths = {row.get("lengths") for row in rows}
    load = "requests/s" if any(row.get("rate") for row in rows) else "users"
    headings = ["arm", load, "tokens/s", "TTFT p50, ms", "TPOT p50, ms", "ratio", "95 %"]
    lines = [
        [
            row["arm"],
            row.get("rate") or row["concurrency"],
            number(row["tokens_per_s"]),
            number(row["ttft_p50_ms"]),
            number(row["tpot_p50_ms"]),
            f"{row['ratio']:.2f}",
            _interval(row),
        ]
        for row in rows
    ]
    if len(lengths) > 1:
        headings.insert(1, "in / out")
        for line, row in zip(lines, rows, strict=True):
            line.insert(1, row["lengths"])
    return markdown_table(headings, lines)


def _paper(result: ResultData) -> list[str]:
    found = paper_table(result)
    if found is None:
        return []
    return ["## As in MaskLLM's table", paragraph(PAPER_NOTE), markdown_table(*found)]


def _verdict(result: ResultData) -> str:
    """What speaks against the numbers, if anything does."""
    problems, doubts = result.get("problems"), result.get("doubts")
    if problems:
        return paragraph("**Void**, measuring ended here:") + "\n\n" + bullets(shortened(problems))
    if doubts:
        return (
            paragraph("**Disturbed** and measured by force:") + "\n\n" + bullets(shortened(doubts))
        )
    return ""


def _interval(row: ResultRow) -> str:
    if row["ratio_low"] is None or row["ratio_low"] == row["ratio_high"]:
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
