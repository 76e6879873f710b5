"""`twofour bench masks league`: quality of masks by method.

Learning and calibration see the learning text alone; perplexity is measured on other texts. Every
finished row is in the result file before the next begins, and an interrupted learning run goes on
from its last checkpoint, so the command can be stopped and started at any time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.masks.settings import LEARNED, PRIORS, PRUNED, Overrides
from benchmarks.masks.texts import GeneralTexts
from benchmarks.masks.workbench import Made, Workbench

KEY = ("method",)
"""What names a row."""


def run_league(
    bench: Workbench,
    texts: GeneralTexts,
    table: Table,
    changed: Overrides,
    only: Collection[str],
    given: Mapping[str, Path],
) -> None:
    """One row a method: dense, one-shot, learned; `given` names mask files to take as they are."""
    for method in ("dense", *PRUNED, *LEARNED):
        if only and method not in only:
            continue

        def measure(method: str = method) -> ResultRow:
            if method in given:
                made = bench.given(given[method])
            else:
                made = _make(bench, texts, method, changed)
            wikitext2 = bench.perplexity(made, texts.wikitext2)
            return {**made.row, "wikitext2": wikitext2, "c4": bench.perplexity(made, texts.c4)}

        if table.measure((method,), measure):
            row = table[(method,)]
            bench.console.print(f"{method}: wikitext2 {row['wikitext2']}, c4 {row['c4']}")


def _make(bench: Workbench, texts: GeneralTexts, method: str, changed: Overrides) -> Made:
    if method == "dense":
        return bench.dense()
    if method in PRUNED:
        return bench.pruned(method, texts.learn, f"general-{method}")
    settings = {**LEARNED[method], **changed.get(method, {})}
    prior = bench.prior(PRIORS.get(method, "sparsegpt"), texts.learn, "general")
    return bench.learned(method, texts.learn, prior, settings, f"general-{method}", texts.wikitext2)


def gap_closed(rows: Sequence[ResultRow], method: str, text: str) -> float:
    """Share of the log-perplexity gap from sparsegpt-update to dense that a method closes."""
    by_method = {row["method"]: math.log(row[text]) for row in rows}
    gap = by_method["sparsegpt-update"] - by_method["dense"]
    return (by_method["sparsegpt-update"] - by_method[method]) / gap
