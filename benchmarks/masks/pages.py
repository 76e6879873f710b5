"""The pages of what `twofour bench masks` measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import geometric_mean

from benchmarks.common.page import (
    changed_groups,
    markdown_picture,
    markdown_table,
    number,
    page,
    paragraph,
    percent,
    titled,
)
from benchmarks.common.result_file import ResultData, ResultRow
from benchmarks.masks.league import gap_closed
from benchmarks.masks.settings import LEARNED

_LEAGUE = """
Perplexity by method, in windows of 2,048 tokens of texts that neither calibration nor learning has
seen. *Gap closed* is the share of the distance in log-perplexity from SparseGPT with update to
dense (MaskLLM on Llama-2-7B closed 62 % of it on 2 billion tokens). All masks leave the weights as
they are; `sparsegpt-update` and `admm` alone change them, for one mask. *Changed groups* counts
against the prior that learning started from.
"""
_CURVE = "The curve is of a few short windows, hence its higher numbers."
_PATTERNS = """
Perplexity by pattern: how many weights of how many consecutive ones a mask keeps, in windows of
2,048 tokens of texts that neither calibration nor learning has seen. The patterns of a column keep
the same share of the weights; a wider group only leaves more ways to choose them, at the bits a
weight that a mask file takes. The CPU engine and vLLM run 2:4 in all types of values, 4:8, 8:16
and 16:32 in int8 and int4.
`sparsegpt-update` changes the weights that it keeps.
"""
_DOMAINS = """
Perplexity on test text of each domain. `general` is the general mask. The others are learned
alike, with {method} on the domain's training text: *scratch* starts from a SparseGPT mask of that
text, *transfer* from the general mask, *graft* where scratch does, with what learning changed in
the general mask carried over (`twofour mask graft`). The table has seed 0.
"""
_SIZES = """
Difference to the general mask, as stored, in bits a weight (in brackets: its entropy), and the
share of the groups that differ:
"""
_SEEDS = "Several seeds of the same domain:"
_ABLATIONS = """
MaskLLM with one setting changed at a time; the row `none` is the benchmark's own setting. Short
runs and few windows: comparable with each other only.
"""
_COST = """
Seconds of one training step over all masked linears: their matrix products (forward and both
gradients), and sampling the masks with the gradient to their logits.
"""


def league_page(result: ResultData) -> str:
    """Quality by method, what it cost, and the learning curves."""
    shown = markdown_picture(result)
    parts = [league_table(result["rows"]), *([shown, paragraph(_CURVE)] if shown else [])]
    parts += ["## What it cost", _costs(result["rows"])]
    return page(titled("Masks by method", result), _LEAGUE, result, *parts)


def league_table(rows: Sequence[ResultRow]) -> str:
    """Perplexities, gap closed, tokens and changed groups by method."""
    methods = {row["method"] for row in rows}
    compared = {"dense", "sparsegpt-update"} <= methods

    def gap(row: ResultRow, text: str) -> str:
        if not compared or row["method"] not in LEARNED:
            return ""
        share = gap_closed(rows, row["method"], text)
        return percent(share, 2) if share > 0 else "none"

    return markdown_table(
        ["method", "Wikitext-2", "C4", "gap closed", "gap, C4", "tokens seen", "changed groups"],
        [
            [
                row["method"],
                number(row["wikitext2"], 4),
                number(row["c4"], 4),
                gap(row, "wikitext2"),
                gap(row, "c4"),
                row["tokens_seen"],
                changed_groups(row.get("changed_groups")),
            ]
            for row in rows
        ],
    )


def _costs(rows: Sequence[ResultRow]) -> str:
    return markdown_table(
        ["method", "seconds", "state, bytes a weight", "mask file, bits a weight"],
        [
            [
                row["method"],
                number(row["seconds"]),
                number(row.get("state_bytes_per_weight")),
                number(row.get("bits_per_weight")),
            ]
            for row in rows
            if row["method"] != "dense"
        ],
    )


def patterns_page(result: ResultData) -> str:
    """Both texts' perplexities, patterns across and methods down."""
    rows = result["rows"]
    parts = [
        part
        for text, title in (("wikitext2", "Wikitext-2"), ("c4", "C4"))
        for part in (f"## {title}", patterns_table(rows, text))
    ]
    return page(titled("Masks by pattern", result), _PATTERNS, result, *parts)


def patterns_table(rows: Sequence[ResultRow], text: str) -> str:
    """Perplexity on one text: a row per method, a column per pattern."""
    masks = [row for row in rows if row["pattern"] is not None]
    patterns = list(dict.fromkeys(row["pattern"] for row in masks))
    stored = {row["pattern"]: row["stored_bits_per_weight"] for row in masks}
    found = {(row["pattern"], row["method"]): number(row[text], 4) for row in masks}
    dense = [number(row[text], 4) for row in rows if row["pattern"] is None]
    return markdown_table(
        ["method", *(f"{pattern} ({stored[pattern]} bits)" for pattern in patterns)],
        [
            *(["dense", *[value] * len(patterns)] for value in dense),
            *(
                [method, *(found.get((pattern, method), "") for pattern in patterns)]
                for method in dict.fromkeys(row["method"] for row in masks)
            ),
        ],
    )


_STARTS = ("scratch", "transfer", "graft")


def domains_page(result: ResultData) -> str:
    """Perplexity by domain and start, sizes of the differences, and seeds."""
    rows = result["rows"]
    parts = [domains_table(rows), paragraph(_SIZES), _sizes(rows)]
    repeated = {row["domain"] for row in rows if row["seed"] > 0}
    if repeated:
        parts += [paragraph(_SEEDS), _seeds([r for r in rows if r["domain"] in repeated])]
    methods = {"maskllm": "MaskLLM", "roi": "RoI (entropic top n)"}
    about = _DOMAINS.format(method=methods[rows[0].get("method", "maskllm")])
    pattern = rows[0].get("pattern", "2:4")
    return page(f"Masks by domain, {pattern}", about, result, *parts)


def domains_table(rows: Sequence[ResultRow]) -> str:
    """Perplexity by domain, and the geometric mean; of seed 0."""
    first = [row for row in rows if row["seed"] == 0]
    arms = [arm for arm in ("dense", "general", *_STARTS) if all(arm in row for row in first)]
    means = [number(geometric_mean(row[arm] for row in first), 4) for arm in arms]
    return markdown_table(
        ["domain", *arms],
        [
            *([row["domain"], *(number(row[arm], 4) for arm in arms)] for row in first),
            ["geometric mean", *means],
        ],
    )


def _sizes(rows: Sequence[ResultRow]) -> str:
    first = [row for row in rows if row["seed"] == 0]
    starts = [start for start in _STARTS if all(start in row for row in first)]
    headings = [f"{start}{what}" for start in starts for what in (", bits", ", groups")]

    def cells(row: ResultRow) -> list[str]:
        found = []
        for start in starts:
            bits, entropy = row[f"{start}_bits_per_weight"], row[f"{start}_entropy_per_weight"]
            found.append(f"{number(bits)} ({number(entropy)})")
            found.append(changed_groups(row[f"{start}_changed_groups"]))
        return found

    return markdown_table(["domain", *headings], [[row["domain"], *cells(row)] for row in first])


def _seeds(rows: Sequence[ResultRow]) -> str:
    starts = [start for start in _STARTS if all(start in row for row in rows)]
    return markdown_table(
        ["domain, seed", *starts],
        [
            [f"{row['domain']}, {row['seed']}", *(number(row[start], 4) for start in starts)]
            for row in rows
        ],
    )


def ablations_page(result: ResultData) -> str:
    """Perplexity by what was changed."""
    return page("Ablations of MaskLLM", _ABLATIONS, result, ablations_table(result["rows"]))


def ablations_table(rows: Sequence[ResultRow]) -> str:
    """Perplexities and changed groups by setting and value."""
    return markdown_table(
        ["setting", "value", "Wikitext-2", "C4", "changed groups"],
        [
            [
                row["what"],
                row["value"],
                number(row["wikitext2"], 4),
                number(row["c4"], 4),
                changed_groups(row["changed_groups"]),
            ]
            for row in rows
        ],
        text=2,
    )


def cost_page(result: ResultData) -> str:
    """Seconds by part and implementation."""
    return page("What sampling masks costs", _COST, result, cost_table(result["rows"]))


def cost_table(rows: Sequence[ResultRow]) -> str:
    """Seconds of a step, and as a share of the matrix products."""
    products = math.fsum(row["seconds"] for row in rows if row["part"] == "products")
    return markdown_table(
        ["part", "implementation", "tokens", "threads", "seconds", "of the products"],
        [
            [
                row["part"],
                row["implementation"],
                row["tokens"],
                row["threads"],
                number(row["seconds"]),
                percent(row["seconds"] / products, 2),
            ]
            for row in rows
        ],
        text=2,
    )
