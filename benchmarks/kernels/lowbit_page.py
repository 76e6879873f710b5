"""The page of docs/results/kernels-lowbit.json."""

from __future__ import annotations

from typing import Any

from benchmarks.common.page import bullets, markdown_table, page, percent
from benchmarks.common.result_file import ResultData, ResultRow

_ABOUT = """
Products of int8 and int4 weights, 2:4 and 16:32, all quantisation of activations included: times
as fast as our 2:4 kernel of bf16, as our dense kernel of the same values, as torch's dense bf16
product (oneDNN) and as torch's int4 product. All arms of a line ran in turns, on copies of the
weights that exceed the last-level cache. Shapes are outputs x inputs.
"""


def lowbit_page(result: ResultData) -> str:
    """Speed-ups by shape, tokens, pattern and values, and the share of bandwidth at one token."""
    parts = []
    for isa, threads in dict.fromkeys((r["isa"], r["threads"]) for r in result["rows"]):
        rows = [r for r in result["rows"] if (r["isa"], r["threads"]) == (isa, threads)]
        parts += [f"## `{isa}`, {threads} thread{'s' if threads > 1 else ''}", _table(rows)]
    if missed := result.get("below_target"):
        parts += ["## Below what was aimed at", bullets(missed)]
    return page(f"Low-bit kernels ({result['machine_class']})", _ABOUT, result, *parts)


def _table(rows: list[ResultRow]) -> str:
    head = ["shape", "tokens", "pattern", "values", "inputs a scale", "ms"]
    over = ["x 2:4 bf16", "x own dense", "x oneDNN bf16", "x torch int4", "of bandwidth"]
    return markdown_table([*head, *over], [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[Any]:
    times = ("sparse_bf16_ms", "dense_own_ms", "dense_onednn_ms", "torch_int4pack_ms")
    return [
        f"{row['n']}x{row['k']}",
        str(row["tokens"]),
        row["pattern"],
        row["values"],
        f"{row['block']}{' and minima' if row['minima'] else ''}",
        f"{row['sparse_ms']:.3f}",
        *(f"{row[name] / row['sparse_ms']:.2f}" for name in times),
        percent(row["sparse_gbps"] / row["read_gbps"], 2) if row["tokens"] == 1 else "",
    ]
