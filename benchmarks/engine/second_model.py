"""A second real model: quality and speed of its arms (`twofour bench engine second`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.page import markdown_table, page
from benchmarks.common.result_file import ResultData, ResultRow
from benchmarks.engine.speed import SpeedPlan, measure
from evaluation.engine_subject import engine_subject
from evaluation.perplexity import joined_tokens, measure_perplexity
from maskgen.texts.text_sets import TextSet

KEY = ("model", "arm")
"""What names a row."""

_ABOUT = """
Models other than the one that everything else is measured with. Perplexity on Wikitext-2 (raw test
file) is the engine's own, from its prompt log-probs. Speed is of one request at a time, the arms
taking turns; a ratio is how many times as fast the sparse arm was in the same run.
"""


def second_model_rows(
    model: str,
    directories: Mapping[str, Path],
    commands: Mapping[str, Sequence[str]],
    plan: SpeedPlan,
    texts: TextSet,
    windows: int,
    say: Callable[[str], None],
) -> list[ResultRow]:
    """A row of every arm.

    Args:
        model: what the rows call it.
        directories: our own arms, whose perplexity is measured.
        commands: how every arm's worker is started.
        plan: one cell.
        texts: to score.
        windows: of 2,048 tokens.
        say: told what is measured.
    """
    quality = {arm: _perplexity(path, texts, windows) for arm, path in directories.items()}
    rows: list[ResultRow] = []
    for cell in measure(commands, plan, say):
        for row in cell:
            found: dict[str, Any] = {"model": model, "arm": row["arm"], "windows": windows}
            found["wikitext2"] = quality.get(row["arm"])
            for name in ("tokens_per_s", "sparse_ratio", "rss_mib", "other_cpu_share"):
                found[name] = row[name]
            rows.append(found)
    return rows


def _perplexity(directory: Path, texts: TextSet, windows: int) -> float:
    with engine_subject(directory, None) as subject:
        tokens = joined_tokens(subject.encode, texts)
        return round(measure_perplexity(subject.score, tokens, windows=windows)[0], 4)


def second_model_page(result: ResultData) -> str:
    """The page of second-model.json."""
    rows = [
        [row["model"], row["arm"], row["wikitext2"], row["tokens_per_s"], row["sparse_ratio"]]
        for row in result["rows"]
    ]
    head = ["model", "arm", "Wikitext-2", "tokens/s", "ratio"]
    return page("A second real model", _ABOUT, result, markdown_table(head, rows, text=2))
