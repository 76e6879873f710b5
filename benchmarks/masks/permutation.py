"""`twofour bench masks permutation`: what masks lose in another basis of the same model.

A transform is found once a seed and kept in the work folder; its rows are masks of what it makes.
Losses by window are in every row, so that two rows can be compared window by window.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.masks.settings import MASKLLM
from benchmarks.masks.texts import GeneralTexts
from benchmarks.masks.workbench import Made, Workbench
from maskgen.format.json_file import read_json, write_json
from maskgen.texts.text_sets import TextSet
from maskgen.transform.absorb import transformed, with_result
from maskgen.transform.compose import compose
from maskgen.transform.config import transform_config
from maskgen.transform.file import read_transform, write_transform
from maskgen.transform.learn import learn_transform
from maskgen.transform.request import TransformRequest

KEY = ("transform", "method", "seed")
"""What names a row."""

BUDGET = {"steps": 60}
"""Of learned orders."""
STEPS: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]] = {
    "none": (),
    "zigzag": (("zigzag", {}),),
    "assignment": (("assignment", {}),),
    "learned-amd": (("learned", {"loss": "amd", **BUDGET}),),
    "learned-permllm": (("learned", {"loss": "permllm", **BUDGET}),),
    "learned-block": (("learned", {"loss": "block", **BUDGET}),),
    "rotation": (("rotation", {}),),
    "free": (("rotation", {}), ("learned", {"loss": "amd", **BUDGET})),
}
"""Transform of the table -> methods and settings, each going on from the one before."""

MASKLLM_STEPS = 100
CELLS: Sequence[tuple[str, str]] = (
    *(("none", method) for method in ("dense", "wanda")),
    ("assignment", "wanda"),
    ("free", "wanda"),
    ("rotation", "wanda"),
    *((f"learned-{loss}", "wanda") for loss in ("block", "amd", "permllm")),
    ("zigzag", "wanda"),
    ("rotation", "dense"),
    ("free", "dense"),
    *(
        (transform, method)
        for method in ("ria", "sparsegpt", "sparsegpt-update")
        for transform in ("none", "assignment", "free")
    ),
    *((transform, "maskllm") for transform in ("none", "free")),
)
"""(transform, method) in the order in which they are measured."""


@dataclass(frozen=True, slots=True)
class Basis:
    """A transform of the benchmark's model.

    Attributes:
        bench: whose model is the transformed one.
        facts: of the transform, for the result file.
    """

    bench: Workbench
    facts: dict[str, Any]


def run_permutation(
    bench: Workbench,
    texts: GeneralTexts,
    table: Table,
    transforms: Collection[str],
    methods: Collection[str],
    seeds: int,
) -> None:
    """One row a transform and method, and for found transforms and Wanda one a seed.

    Args:
        transforms, methods: those to measure; all, if empty.
        seeds: of the transform, from 0; methods other than Wanda take the first alone.
    """
    for transform, method in CELLS:
        if (transforms and transform not in transforms) or (methods and method not in methods):
            continue
        repeats = seeds if method == "wanda" and transform != "none" else 1
        for seed in range(repeats):

            def measure(
                transform: str = transform, method: str = method, seed: int = seed
            ) -> ResultRow:
                basis = find_basis(bench, texts.learn, transform, seed)
                made = _make(basis.bench, texts, method)
                losses = {t.name: basis.bench.losses(made, t) for t in (texts.wikitext2, texts.c4)}
                return {
                    **{name: round(math.exp(fmean(loss)), 3) for name, loss in losses.items()},
                    **basis.facts,
                    "mask_seconds": made.row["seconds"],
                    "window_losses": {name: [round(x, 5) for x in v] for name, v in losses.items()},
                }

            if table.measure((transform, method, seed), measure):
                row = table[(transform, method, seed)]
                bench.console.print(
                    f"{transform} {method} {seed}: wikitext2 {row['wikitext2']}, c4 {row['c4']}"
                )


def find_basis(bench: Workbench, texts: TextSet, transform: str, seed: int) -> Basis:
    """The model in the basis that a transform of the table gives it."""
    directory, label = bench.directory, f"{transform}-{seed}"
    facts: dict[str, Any] = {"seconds": 0.0, "transform_digest": None}
    file: Path | None = None
    for number, (method, settings) in enumerate(STEPS[transform], start=1):
        path = bench.folder / "transforms" / f"{label}-{number}.safetensors"
        kept = path.with_suffix(".json")
        if not kept.is_file():
            bench.console.print(f"{label}: finding a transform by {method}")
            seeded = {"seed": seed} if method == "learned" else {}
            request = TransformRequest(
                method,
                transform_config(method, {**settings, **seeded}),
                windows=bench.windows,
                length=bench.length,
                seed=seed,
                dtype=bench.dtype,
                folder=path.with_suffix(".run"),
                resume=True,
            )
            result = learn_transform(directory, texts, request, console=bench.console)
            both = result.transform
            if file is not None:
                both = with_result(bench.directory, compose(read_transform(file), both))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_transform(path, both)
            numbers = {name: round(value, 4) for name, value in result.facts.items()}
            write_json(kept, {"seconds": round(result.seconds, 1), **numbers})
        own = read_json(kept, ValueError)
        facts = {**facts, **own, "seconds": round(facts["seconds"] + own["seconds"], 1)}
        facts["transform_digest"] = read_transform(path).digest
        directory, file = transformed(bench.directory, path), path
    return Basis(replace(bench, directory=directory, folder=bench.folder / label), facts)


def _make(bench: Workbench, texts: GeneralTexts, method: str) -> Made:
    if method == "dense":
        return bench.dense()
    if method == "maskllm":
        settings = {**MASKLLM, "steps": MASKLLM_STEPS}
        prior = bench.prior("sparsegpt", texts.learn, "general")
        return bench.learned("maskllm", texts.learn, prior, settings, "general-maskllm")
    return bench.pruned(method, texts.learn, f"general-{method}")


def gap_share(rows: Sequence[ResultRow], row: ResultRow, text: str) -> float | None:
    """Share of a method's log-perplexity gap to dense that a transform closes; None if unknown."""
    plain = {r["method"]: math.log(r[text]) for r in rows if r["transform"] == "none"}
    if "dense" not in plain or row["method"] not in plain or row["method"] == "dense":
        return None
    gap = plain[row["method"]] - plain["dense"]
    return (plain[row["method"]] - math.log(row[text])) / gap


def window_difference(row: ResultRow, other: ResultRow, text: str) -> tuple[float, float]:
    """Mean over windows of how much less a row loses than another, and its standard error, nats."""
    pairs = zip(other["window_losses"][text], row["window_losses"][text], strict=True)
    differences = [theirs - own for theirs, own in pairs]
    if len(differences) < 2:
        return fmean(differences), math.nan
    return fmean(differences), stdev(differences) / math.sqrt(len(differences))
