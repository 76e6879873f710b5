"""`twofour bench masks patterns`: the same methods, keeping n of every m for several N:M.

The default patterns keep half of the weights, so that they differ in nothing but how freely they
choose: the wider a group, the fewer important weights stand in each other's way. Rows are kept and
gone on with as in `benchmarks.masks.league`.
"""

from __future__ import annotations

from collections.abc import Collection

from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.masks.settings import LEARNED, PRIORS, Overrides
from benchmarks.masks.texts import GeneralTexts
from benchmarks.masks.workbench import Made, Workbench
from maskgen.format.packing import word_of
from maskgen.format.pattern import Pattern

KEY = ("pattern", "method")
"""What names a row; the dense model's has no pattern."""
DENSE = "dense"
METHODS = ("wanda", "sparsegpt", "sparsegpt-update", "maskpro")
"""In the order of their rows: the cheap ones first."""


def run_patterns(
    bench: Workbench,
    texts: GeneralTexts,
    table: Table,
    patterns: Collection[Pattern],
    methods: Collection[str],
    changed: Overrides,
) -> None:
    """One row a method and pattern, after the dense model's."""
    cells: list[tuple[Pattern | None, str]] = [(None, DENSE)]
    cells += [(pattern, method) for method in METHODS if method in methods for pattern in patterns]
    for pattern, method in cells:

        def measure(pattern: Pattern | None = pattern, method: str = method) -> ResultRow:
            made = _make(bench, texts, pattern, method, changed)
            wikitext2 = bench.perplexity(made, texts.wikitext2)
            row = {**made.row, "wikitext2": wikitext2, "c4": bench.perplexity(made, texts.c4)}
            if pattern is not None:
                row["stored_bits_per_weight"] = round(word_of(pattern).bits_per_weight(pattern), 4)
            return row

        key = (None if pattern is None else str(pattern), method)
        if table.measure(key, measure):
            row = table[key]
            said = method if pattern is None else f"{pattern} {method}"
            bench.console.print(f"{said}: wikitext2 {row['wikitext2']}, c4 {row['c4']}")


def _make(
    bench: Workbench,
    texts: GeneralTexts,
    pattern: Pattern | None,
    method: str,
    changed: Overrides,
) -> Made:
    if pattern is None:
        return bench.dense()
    if method not in LEARNED:
        return bench.pruned(method, texts.learn, f"general-{method}", pattern)
    settings = {**LEARNED[method], **changed.get(method, {})}
    prior = bench.prior(PRIORS.get(method, "sparsegpt"), texts.learn, "general", pattern)
    label = f"general-{method}-{pattern.n}-{pattern.m}"
    return bench.learned(method, texts.learn, prior, settings, label)
