"""The page of what `twofour bench masks products` measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.common.page import markdown_table, number, page, paragraph, percent
from benchmarks.common.result_file import ResultData, ResultRow
from benchmarks.masks.zero_shot import accuracy_difference

_PRODUCTS = """
Perplexity of the dense model, of *swappable* masks, which leave its weights as they are, and of
*single* models, whose kept weights were recovered for one mask, in windows of 2,048 tokens of texts
that neither learning nor the choice of settings has seen. *Over dense* is on Wikitext-2. Tokens and
hours are those of the recovery alone: making its mask comes before. Zero-shot is the mean accuracy
(plain `acc`) of the tasks that were asked for, as the CPU engine serves the product (wide patterns
with bf16 weights in int8), and how many points that is from dense, question by question, with its
standard error.
"""
_WINDOWS = "Windows of each text that were measured, from its beginning: {}."
_CURVES = """
Perplexity of the held-out text that chose the step, by tokens of end-to-end tuning; a few short
windows, so the numbers compare with each other only.
"""
_SHARED = """
Runs of 13 words of the test texts that the training text holds as well: {}.
"""


def products_page(result: ResultData) -> str:
    """Quality by product, held-out curves, and what training and test text share."""
    count = result["data_digests"].get("number of windows", "all")
    parts = [paragraph(_WINDOWS.format(count)), products_table(result["rows"])]
    if curves := _curves(result["rows"]):
        parts += ["## On held-out text", paragraph(_CURVES), curves]
    if shared := result.get("shared_runs"):
        shown = ", ".join(f"{name} {percent(share, 2)}" for name, share in shared.items())
        parts.append(paragraph(_SHARED.format(shown)))
    return page("Products", _PRODUCTS, result, *parts)


def products_table(rows: Sequence[ResultRow]) -> str:
    """Perplexities, accuracy, tokens and hours by product."""
    dense_row = next(row for row in rows if row["product"] == "dense")
    dense = dense_row["wikitext2"]

    def cells(row: ResultRow) -> list[Any]:
        over = row["wikitext2"] / dense - 1
        accuracy, better = row["zero_shot"], ""
        if accuracy is not None and row["product"] != "dense" and dense_row["zero_shot"]:
            difference, error = accuracy_difference(row, dense_row)
            better = f"{100 * difference:+.1f} ± {100 * error:.1f}"
        return [
            row["product"],
            row["pattern"],
            row["values"],
            number(row["wikitext2"], 4),
            number(row["c4"], 4),
            "" if row["product"] == "dense" else percent(over, 2),
            "" if accuracy is None else percent(accuracy["mean"], 3),
            better,
            row["tokens_seen"],
            "" if row["hours"] is None else f"{row['hours']:.2f}",
        ]

    headings = ["product", "pattern", "values", "Wikitext-2", "C4", "over dense", "zero-shot"]
    headings.append("points from dense")
    return markdown_table([*headings, "tokens seen", "hours"], map(cells, rows), text=3)


def _curves(rows: Sequence[ResultRow]) -> str:
    shown = [row for row in rows if row.get("held_out_curve")]
    if not shown:
        return ""
    curves = [dict(row["held_out_curve"]) for row in shown]
    points = sorted({tokens for curve in curves for tokens in curve})
    names = [f"{row['product']} {row['pattern']} {row['values']}" for row in shown]

    def cell(curve: dict[int, float], tokens: int) -> str:
        return number(math.exp(curve[tokens]), 4) if tokens in curve else ""

    return markdown_table(
        ["tokens", *names],
        [[f"{tokens:,}", *(cell(curve, tokens) for curve in curves)] for tokens in points],
    )
