"""The page of what `twofour bench values` measures."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import markdown_table, number, page
from benchmarks.common.result_file import ResultData, ResultRow

_ABOUT = """
Perplexity by type of values and pattern: the first windows of 2,048 tokens of each text, scored by
the CPU engine itself, so that rounding activations to 8 bits is in it. In brackets, the change
against bf16 with the same mask. Bytes are those of the file of weights, norms, head and embedding
included. Speeds are of one request, 128 tokens in and 128 out, where they were measured. Rows of
GGUF types have the bytes of the file and the speed of ik_llama.cpp; their perplexity is that of the
file's weights, dequantised to bf16, in our engine, without what that program rounds at run time.
*Recovered* models have changed weights for their one mask, and speeds of masks of their pattern.
"""


def values_page(result: ResultData) -> str:
    """Perplexity and bytes by type of values and pattern."""
    return page("Types of values: quality and bytes", _ABOUT, result, values_table(result["rows"]))


def values_table(rows: Sequence[ResultRow]) -> str:
    """One row for each pattern and type of values."""
    plain = {row["pattern"]: row for row in rows if (row["values"], row["head"]) == ("bf16",) * 2}
    return markdown_table(
        ["pattern", "values", "head", "Wikitext-2", "C4", "weights, MiB", "tokens/s"],
        [
            [
                row["pattern"],
                _values(row),
                "" if row.get("file") else row["head"],
                *(
                    _perplexity(row, plain.get(row["pattern"]), name)
                    for name in ("wikitext2", "c4")
                ),
                f"{row['weights_mib']:.1f}",
                "" if row["tokens_per_s"] is None else number(row["tokens_per_s"]),
            ]
            for row in sorted(rows, key=lambda row: row["pattern"] != "dense")
        ],
        text=3,
    )


def _values(row: ResultRow) -> str:
    if row["values"] == "bf16":
        return "bf16"
    if row.get("file"):
        return f"GGUF {row['values'].upper()}"
    minima = ", minima" if row["minima"] else ""
    return f"{row['values']}, blocks of {row['block']}{minima}"


def _perplexity(row: ResultRow, plain: ResultRow | None, name: str) -> str:
    shown = f"{row[name]:.2f}"
    if plain is None or row is plain:
        return shown
    return f"{shown} ({100 * (row[name] / plain[name] - 1):+.1f} %)"
