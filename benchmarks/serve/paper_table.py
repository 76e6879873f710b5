"""MaskLLM's throughput table with what was measured here beside it."""

from __future__ import annotations

import re

from benchmarks.common.maskllm_grid import GRID, PAPER, Cell, scaled_grid
from benchmarks.common.page import number
from benchmarks.common.result_file import ResultData, ResultRow

PAPER_NOTE = """
Generated tokens per second at one request at a time, prompts included, and times dense. Beside what
was measured here stand the paper's figures for an A6000 with TensorRT-LLM at batch 1 (MaskLLM,
arXiv 2409.17481): another machine and larger models, of which the ratios alone compare.
"""

_FORM = re.compile(r"maskllm(?:/(\d{1,3}))?")


def preset_lengths(preset: str) -> tuple[Cell, ...]:
    """The lengths of `maskllm`, or of `maskllm/8` with an eighth of them.

    Raises:
        ValueError: any other text.
    """
    match = _FORM.fullmatch(preset)
    if match is None:
        raise ValueError(f"--preset {preset!r}: must be maskllm, or maskllm/N for lengths / N")
    return scaled_grid(int(match[1] or 1))


def paper_table(result: ResultData) -> tuple[list[str], list[list[str]]] | None:
    """Headings and lines: a line per cell, tokens per second and times dense.

    Returns:
        None when the result is not of the preset.
    """
    preset = result.get("plan", {}).get("preset")
    if preset is None:
        return None
    rows = {(row["arm"], row["lengths"]): row for row in result["rows"]}
    reference = result["reference"]
    arms = [reference, *(arm for arm in result["arms"] if arm != reference)]
    headings = ["in / out", *(f"{model}: dense, 2:4" for model in PAPER), *arms]
    lines = []
    for cell, scaled, figures in zip(
        GRID, preset_lengths(preset), zip(*PAPER.values(), strict=True), strict=True
    ):
        here = "" if cell == scaled else f" (here {scaled[0]} / {scaled[1]})"
        measured = [rows.get((arm, f"{scaled[0]}/{scaled[1]}")) for arm in arms]
        lines.append(
            [
                f"{cell[0]} / {cell[1]}{here}",
                *(_pair(*pair) for pair in figures),
                *(_measured(row, reference) for row in measured),
            ]
        )
    return headings, lines


def _pair(dense: float, sparse: float) -> str:
    return f"{dense:.2f}, {sparse:.2f} ({sparse / dense:.2f}x)"


def _measured(row: ResultRow | None, reference: str) -> str:
    if row is None:
        return "void"
    speed = number(row["tokens_per_s"])
    return speed if row["arm"] == reference else f"{speed} ({row['ratio']:.2f}x)"
