"""Families of models and what runs them, from the declarations (`twofour bench models`)."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import bullets, markdown_table, page
from benchmarks.common.result_file import ResultData, ResultRow
from engines.directory.families import FAMILIES, MIXTURES
from engines.support import family_support
from maskgen.transform.architectures import ARCHITECTURES as TRANSFORMED

_ABOUT = """
What each engine makes of a family of models. *Tested* on `cpu`: tiny random models of the family,
whose configurations are drawn at random, give the log-probabilities that transformers gives; on
`vllm`: a tiny random model gives the log-probabilities and greedy tokens that transformers gives;
on `tensorrt-llm`: the checkpoint is bit for bit that of NVIDIA's exporter. *Not tested*: it is
built, and its answers have not been compared. *Refused*: the build says why. `twofour info MODEL`
says it of one model.
"""


def family_rows() -> list[ResultRow]:
    """A row of every family and engine."""
    names = {kind: family.models for kind, family in FAMILIES.items()} | dict(MIXTURES)
    return [
        {
            "family": kind,
            "models": models,
            "engine": engine,
            "status": support.status,
            "reason": support.note,
        }
        for kind, models in names.items()
        for engine, support in family_support(kind).items()
    ]


def families_table(rows: Sequence[ResultRow]) -> str:
    """Families of the CPU engine, and what each engine and `twofour transform` make of them."""
    status = {(row["family"], row["engine"]): row["status"] for row in rows}
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    names = {row["family"]: row["models"] for row in rows}
    lines = [
        [
            models,
            f"`{kind}`",
            *(status[kind, engine] for engine in engines),
            "yes" if kind in TRANSFORMED else "no",
        ]
        for kind, models in names.items()
    ]
    head = ["models", "`model_type`", *engines, "transforms"]
    return markdown_table(head, lines, text=len(head))


def models_page(result: ResultData) -> str:
    """The page of models.json."""
    reasons = {
        f"{row['family']} on {row['engine']}: {row['reason']}"
        for row in result["rows"]
        if row["reason"]
    }
    return page(
        "Families of models",
        _ABOUT,
        result,
        families_table(result["rows"]),
        "Why some are refused, and what limits others:",
        bullets(sorted(reasons)),
    )
