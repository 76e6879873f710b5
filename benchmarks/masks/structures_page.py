"""The page of what `twofour bench masks structure` measures."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import markdown_table, number, page, percent
from benchmarks.common.result_file import ResultData, ResultRow

_ABOUT = """
Smaller dense models: feed-forward channels and key-value heads (with their query heads) removed,
the same number in every layer, so that every loader takes them. At each ratio all methods have the
same width. Perplexity in windows of 2,048 tokens of texts that neither calibration nor learning has
seen. *Weights* are those of the decoder's linears, as a share of the whole model's. A recovered
model's weights were tuned against the dense model. Tokens per second are the CPU engine's (bf16,
one request of 128 tokens and 128 more), of one model of every shape, all in turns. MaskPrune is a
reconstruction: its paper's equations are not public ([how](../structure.md)).
"""


def structures_page(result: ResultData) -> str:
    """Quality by ratio, width and method."""
    return page("Smaller dense models", _ABOUT, result, structures_table(result["rows"]))


def structures_table(rows: Sequence[ResultRow]) -> str:
    """A line for every row."""
    return markdown_table(
        [
            *("method", "ratio", "channels", "key-value heads", "weights", "recovered"),
            *("Wikitext-2", "C4", "tokens seen", "tokens/s", "times dense"),
        ],
        [
            [
                row["method"],
                str(row["ratio"]),
                str(row["intermediate_size"]),
                str(row["key_value_heads"]),
                percent(row.get("share", 1.0), 3),
                "yes" if row["recovered"] else "no",
                number(row["wikitext2"], 4),
                number(row["c4"], 4),
                row["tokens_seen"],
                "" if row["tokens_per_s"] is None else number(row["tokens_per_s"]),
                number(row.get("times_dense")),
            ]
            for row in rows
        ],
        text=1,
    )
