"""The page of docs/results/trtllm.json."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import markdown_table, number, page
from benchmarks.common.result_file import ResultData, ResultRow
from benchmarks.trtllm.report import GRID_ARMS

_ABOUT = """
TensorRT-LLM, generated tokens per second in the grid of MaskLLM's paper: dense with the GEMM
plugin, dense without it, and 2:4. The speed-up is over the faster dense engine.
"""


def trtllm_page(result: ResultData) -> str:
    """Tokens per second by cell and arm."""
    return page("TensorRT-LLM", _ABOUT, result, grid_table(result["rows"]))


def grid_table(rows: Sequence[ResultRow]) -> str:
    """Tokens per second by cell and arm, the speed-up, and how many layers ran sparse."""
    found = {(row["input_tokens"], row["output_tokens"], row["arm"]): row for row in rows}
    lines = []
    for cell in sorted({(row["input_tokens"], row["output_tokens"]) for row in rows}):
        speeds = [found.get((*cell, arm), {}).get("tokens_per_s") for arm in GRID_ARMS]
        dense = max((speed for speed in speeds[:2] if speed is not None), default=None)
        sparse = found.get((*cell, "sparse"))
        gain = None if dense is None or sparse is None else sparse["tokens_per_s"] / dense
        chosen = "" if sparse is None else f"{sparse['chosen']} of {sparse['eligible']}"
        lines.append([f"{cell[0]} / {cell[1]}", *map(number, speeds), number(gain), chosen])
    headings = ["in / out", "dense, plugin", "dense", "2:4", "speed-up", "sparse layers"]
    return markdown_table(headings, lines)
