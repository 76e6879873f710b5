"""How fast smaller dense models are (`twofour bench masks structure --speed`).

Speed depends on the shape alone, so that one model of every shape is timed, and the rows of that
shape have its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.masks.structures import structure_file
from benchmarks.masks.workbench import Workbench
from maskgen.format.model_directory import read_model_config

DENSE = "dense"
"""The arm that ratios are taken from."""


def models_to_time(bench: Workbench, rows: Sequence[ResultRow]) -> dict[str, Path]:
    """Arm -> a model of its shape, from the work folder; the dense one first.

    Raises:
        ValueError: there is no dense row, or a shape without a model in the work folder.
    """
    models: dict[str, Path] = {}
    for row in rows:
        if row["method"] == DENSE:
            models[DENSE] = bench.directory
            continue
        file = structure_file(bench, row["method"], row["ratio"], row["key_value_heads"])
        model = file.with_suffix("")
        if model.is_dir() and _fits(row, model):
            models.setdefault(_arm(row), model)
    missing = sorted({_arm(row) for row in rows} - models.keys())
    if missing or DENSE not in models:
        raise ValueError(
            f"no model of {', '.join(missing) or DENSE} in {bench.folder}: measure its rows with"
            " the same --work first"
        )
    return models


def add_speed(table: Table, timed: Mapping[str, ResultRow]) -> None:
    """Fill in `tokens_per_s` of all rows, and how many times as fast as the dense model that is.

    Args:
        timed: by arm, what `benchmarks.engine.speed` measured with the reference `DENSE`.
    """
    rows: list[ResultRow] = []
    for row in table.rows():
        figures = timed[_arm(row)]
        ratio = figures["sparse_ratio"] or 1.0  # the dense model has none
        rows.append(
            {
                **row,
                "tokens_per_s": figures["tokens_per_s"],
                "times_dense": round(1 / ratio, 3),
                "other_cpu_share": max(row["other_cpu_share"], figures["other_cpu_share"]),
            }
        )
    table.put(rows)


def _fits(row: ResultRow, model: Path) -> bool:
    config = read_model_config(model)
    shape = config["intermediate_size"], config["num_key_value_heads"]
    return shape == (row["intermediate_size"], row["key_value_heads"])


def _arm(row: ResultRow) -> str:
    if row["method"] == DENSE:
        return DENSE
    return f"{row['intermediate_size']} channels, {row['key_value_heads']} heads"
