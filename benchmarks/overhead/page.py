"""The page of docs/results/overhead.json."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import markdown_table, number, page
from benchmarks.common.result_file import ResultData, ResultRow

_ABOUT = """
The engine called directly, and the server over the same engine, in turns wave by wave: greedy
requests that start together, random prompts, without the prefix cache. The server, its client and
all threads of the engine share the cores, so what the client takes is in the ratio, too. Ratio and
added time to first token are medians of the pairs, the latter of prompts of 8 tokens; the span is
of all pairs. CPU is the time of all cores for each token.
"""


def overhead_page(result: ResultData) -> str:
    """Speed and time to first token of both arms, and what each process takes of the CPU."""
    rows = sorted(result["rows"], key=lambda row: int(row["concurrency"]))
    row = rows[0]
    shape = f"{row['prompt_tokens']}/{row['output_tokens']} tokens, {row['threads']} threads"
    return page(
        f"The server over its engine: {result['model']}, {shape}",
        _ABOUT,
        result,
        overhead_table(rows),
        "## CPU time",
        markdown_table(
            ["streams", "engine alone, ms", "server, ms", "its client, ms"],
            [
                [r["concurrency"], *(f"{r[f'{who}_cpu_ms']:.2f}" for who in _PROCESSES)]
                for r in rows
            ],
        ),
    )


_PROCESSES = ("engine", "server", "client")


def overhead_table(rows: Sequence[ResultRow]) -> str:
    """Speed of both arms, and what HTTP adds to the first token."""
    headings = ["streams", "engine, tokens/s", "HTTP, tokens/s", "ratio", "span"]
    return markdown_table(
        [*headings, "engine, TTFT, ms", "added, ms"],
        [
            [
                row["concurrency"],
                number(row["engine_tokens_per_s"]),
                number(row["http_tokens_per_s"]),
                f"{row['ratio']:.3f}",
                f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
                number(row["engine_ttft_ms"]),
                f"{row['added_ttft_ms']:.2f}",
            ]
            for row in sorted(rows, key=lambda row: int(row["concurrency"]))
        ],
    )
