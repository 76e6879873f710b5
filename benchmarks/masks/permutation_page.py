"""The page of what `twofour bench masks permutation` measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.common.page import markdown_table, number, page, paragraph, percent, titled
from benchmarks.common.result_file import ResultData, ResultRow
from benchmarks.masks.permutation import gap_share, window_difference

_ABOUT = """
Perplexity of masks of the same model in other bases, in windows of 2,048 tokens of texts that
neither calibration nor learning has seen. *Gap closed* is the share of the method's distance in
log-perplexity to the dense model that the transform closes. `dense` is the transformed model as it
is stored: orders move its weights and change none, rotations round them. Seconds are those that
finding the transform took, on a machine with other work.
"""
_WINDOWS = """
How much less a mask loses than the one in the basis to compare with, in nats a token: mean over the
windows, and its standard error.
"""


def permutation_page(result: ResultData) -> str:
    """Quality by transform and method, and differences window by window."""
    parts = [permutation_table(result["rows"])]
    if differences := _differences(result["rows"]):
        parts += ["## Window by window", paragraph(_WINDOWS), differences]
    return page(titled("Masks in other bases", result), _ABOUT, result, *parts)


def permutation_table(rows: Sequence[ResultRow]) -> str:
    """Perplexities, gap closed and seconds."""

    def closed(row: ResultRow, text: str) -> str:
        share = None if row["transform"] == "none" else gap_share(rows, row, text)
        return "" if share is None else percent(share, 2) if share > 0 else "none"

    return markdown_table(
        ["transform", "method", "seed", "Wikitext-2", "C4", "gap closed", "gap, C4", "seconds"],
        [
            [
                row["transform"],
                row["method"],
                str(row["seed"]),
                number(row["wikitext2"], 4),
                number(row["c4"], 4),
                closed(row, "wikitext2"),
                closed(row, "c4"),
                number(row["seconds"]),
            ]
            for row in rows
        ],
        text=3,
    )


def _differences(rows: Sequence[ResultRow]) -> str:
    """Every basis against none and, where it is not that one, against `assignment`."""
    lines: list[list[Any]] = []
    for row in rows:
        for against in ("none", "assignment"):
            other = next(
                (
                    r
                    for r in rows
                    if (r["transform"], r["method"], r["seed"]) == (against, row["method"], 0)
                ),
                None,
            )
            if other is None or row["method"] == "dense" or row["transform"] in ("none", against):
                continue
            cells = [f"{row['transform']}, {row['method']}, {row['seed']}", against]
            for text in ("wikitext2", "c4"):
                mean, error = window_difference(row, other, text)
                shown = "" if math.isnan(error) else f" ± {error:.4f}"
                cells.append(f"{mean:.4f}{shown}")
            lines.append(cells)
    if not lines:
        return ""
    return markdown_table(["basis, method, seed", "against", "Wikitext-2", "C4"], lines, text=2)
