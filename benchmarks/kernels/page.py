"""The page of docs/results/kernels.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common.page import (
    bullets,
    markdown_picture,
    markdown_table,
    number,
    page,
    paragraph,
    percent,
)
from benchmarks.common.result_file import ResultData, ResultRow

_ABOUT = """
One product of packed weights with activations, all packing of activations included: the 2:4 kernel
beside our dense one and oneDNN's, in turns, on copies of the weights that exceed the last-level
cache. A speed-up is over the better dense arm, bf16 on both sides; where memory decides, 64/36 =
1.78 is the most that 2:4 in bf16 can gain. Shapes are outputs x inputs.
"""
_ALTERNATION = """
What a call takes in turns with torch's dense product, over what it takes when only its own kind
runs:
"""


def kernels_page(result: ResultData) -> str:
    """Speed-ups by shape and tokens, bandwidth at one token, and what fell short."""
    parts = []
    for isa, threads in dict.fromkeys((r["isa"], r["threads"]) for r in result["rows"]):
        rows = [r for r in result["rows"] if (r["isa"], r["threads"]) == (isa, threads)]
        plural = "s" if threads > 1 else ""
        parts += [f"## `{isa}`, {threads} thread{plural}", speedup_table(rows)]
    if missed := result.get("below_target"):
        parts += ["## Below what was aimed at", bullets(missed)]
    if turns := result.get("alternation"):
        parts += ["## In turns with torch", paragraph(_ALTERNATION), _alternation(turns)]
    return page("Kernels", _ABOUT, result, *parts, markdown_picture(result))


def speedup_table(rows: Sequence[ResultRow]) -> str:
    """Times the better dense arm by shape and tokens, and the share of bandwidth at one token."""
    tokens = sorted({row["tokens"] for row in rows})
    found = {(row["n"], row["k"], row["tokens"]): row for row in rows}
    shapes = sorted({(row["n"], row["k"]) for row in rows}, key=lambda s: (-s[0] * s[1], s))
    return markdown_table(
        ["shape", *(f"{count} tok." for count in tokens), "of bandwidth, 1 tok."],
        [
            [
                f"{n}x{k}",
                *(speedup(found.get((n, k, count))) for count in tokens),
                _bandwidth(found.get((n, k, 1))),
            ]
            for n, k in shapes
        ],
    )


def speedup(row: ResultRow | None) -> str:
    """Over the better dense arm; empty where nothing was measured."""
    if row is None:
        return ""
    return f"{min(row['dense_own_ms'], row['dense_onednn_ms']) / row['sparse_ms']:.2f}"


def _bandwidth(row: ResultRow | None) -> str:
    return "" if row is None else percent(row["sparse_gbps"] / row["read_gbps"], 2)


def _alternation(turns: Sequence[dict[str, Any]]) -> str:
    return markdown_table(
        ["tokens", "threads", "ours", "oneDNN"],
        [
            [str(t["tokens"]), t["threads"], number(t["sparse_ratio"]), number(t["onednn_ratio"])]
            for t in turns
        ],
    )
