"""How fast smaller dense models are in the CPU engine (`twofour bench masks structure --speed`).

Speed depends on the shape alone, so that one model of every shape is timed, all in turns, and the
rows of that shape have its number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.common.engine_directories import build_engine
from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.engine.arms import engine_command
from benchmarks.engine.speed import SpeedPlan, measure
from benchmarks.masks.structures import structure_file
from benchmarks.masks.workbench import Workbench
from maskgen.format.model_directory import read_model_config

Shape = tuple[int, int]
"""Channels and key-value heads of a layer."""
_DENSE = "dense"


def time_structures(
    bench: Workbench, table: Table, plan: SpeedPlan, say: Callable[[str], None]
) -> None:
    """Fill in `tokens_per_s` of all rows, and how many times as fast as the dense model that is.

    Args:
        table: its rows' models lie in the work folder.
        plan: one cell; `reference` is the arm `dense`.

    Raises:
        ValueError: there is no dense row, or a shape without a model in the work folder.
    """
    models = _models(bench, table.rows())
    with tempfile.TemporaryDirectory(prefix="twofour-bench-") as folder:
        commands = {
            arm: engine_command(build_engine(str(model), {}, Path(folder) / arm), plan)
            for arm, model in models.items()
        }
        timed = {row["arm"]: row for rows in measure(commands, plan, say) for row in rows}
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


def _models(bench: Workbench, rows: list[ResultRow]) -> dict[str, Path]:
    """Arm -> a model of its shape; the dense one first."""
    models: dict[str, Path] = {}
    for row in rows:
        if row["method"] == _DENSE:
            models[_DENSE] = bench.directory
            continue
        file = structure_file(bench, row["method"], row["ratio"], row["key_value_heads"])
        model = file.with_suffix("")
        if model.is_dir() and _fits(row, model):
            models.setdefault(_arm(row), model)
    missing = sorted({_arm(row) for row in rows} - models.keys())
    if missing or _DENSE not in models:
        raise ValueError(
            f"no model of {', '.join(missing) or _DENSE} in {bench.folder}: measure its rows with"
            " the same --work first"
        )
    return models


def _fits(row: ResultRow, model: Path) -> bool:
    config = read_model_config(model)
    shape = config["intermediate_size"], config["num_key_value_heads"]
    return shape == (row["intermediate_size"], row["key_value_heads"])


def _arm(row: ResultRow) -> str:
    if row["method"] == _DENSE:
        return _DENSE
    return f"{row['intermediate_size']} channels, {row['key_value_heads']} heads"
