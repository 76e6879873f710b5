"""Reads what the TensorRT-LLM benchmark measured, and shows it in the form of the paper's table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from engines.tensorrt_llm.record import read_record
from maskgen.format.json_file import read_json

GRID_ARMS = ("dense-plugin", "dense", "sparse")
"""Engine directories of the benchmark, in the order of the table."""

REPORTS = "reports"


@dataclass(frozen=True, slots=True)
class GridRow:
    """One `trtllm-bench` run.

    Attributes:
        arm: which engine.
        input_tokens: of every prompt.
        output_tokens: generated for it.
        tokens_per_s: generated tokens of all requests, by the time of the whole run.
        eligible: layers that TensorRT found fit for sparse tactics; None in dense engines.
        chosen: layers for which it chose one.
    """

    arm: str
    input_tokens: int
    output_tokens: int
    tokens_per_s: float
    eligible: int | None = None
    chosen: int | None = None


def dataset_name(prompt: int, generated: int) -> str:
    """File of a cell's requests."""
    return f"requests-{prompt}-{generated}.jsonl"


def report_name(arm: str, prompt: int, generated: int) -> str:
    """File of a cell's report."""
    return f"{REPORTS}/{arm}-{prompt}-{generated}.json"


def read_reports(folder: Path) -> list[GridRow]:
    """Every measured cell, in the order of the table.

    Raises:
        ValueError: nothing was measured, or a report is not one of `trtllm-bench`.
    """
    rows: list[GridRow] = []
    cells: set[tuple[int, int]] = set()
    for path in folder.glob(f"{REPORTS}/*.json"):
        if name := re.fullmatch(r".+-(\d+)-(\d+)", path.stem):
            cells.add((int(name[1]), int(name[2])))
    for prompt, generated in sorted(cells):
        rows += [
            _read_row(folder, arm, prompt, generated)
            for arm in GRID_ARMS
            if (folder / report_name(arm, prompt, generated)).is_file()
        ]
    if not rows:
        raise ValueError(f"{folder / REPORTS} holds no reports; run {folder / 'run.sh'} first")
    return rows


def table(rows: list[GridRow]) -> Table:
    """Tokens per second by cell and arm; the speed-up is over the faster dense engine."""
    sparse = next((row for row in rows if row.arm == "sparse"), None)
    tactics = "" if sparse is None else f", {sparse.chosen} of {sparse.eligible} layers sparse"
    shown = Table(title=f"generated tokens per second{tactics}")
    for heading in ("input", "output", "dense, plugin", "dense, no plugin", "2:4", "speed-up"):
        shown.add_column(heading, justify="right")
    found = {(row.input_tokens, row.output_tokens, row.arm): row.tokens_per_s for row in rows}
    for prompt, generated in sorted({(row.input_tokens, row.output_tokens) for row in rows}):
        speeds = [found.get((prompt, generated, arm)) for arm in GRID_ARMS]
        dense = max((speed for speed in speeds[:2] if speed is not None), default=None)
        gain = "" if dense is None or speeds[2] is None else f"{speeds[2] / dense:.2f}x"
        cells = ["" if speed is None else f"{speed:.2f}" for speed in speeds]
        shown.add_row(str(prompt), str(generated), *cells, gain)
    return shown


def _read_row(folder: Path, arm: str, prompt: int, generated: int) -> GridRow:
    path = folder / report_name(arm, prompt, generated)
    try:
        speed = float(read_json(path, ValueError)["performance"]["system_output_throughput_tok_s"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report of trtllm-bench: {error!r}") from error
    if arm != "sparse":
        return GridRow(arm, prompt, generated, speed)
    _, record = read_record(folder / arm)
    engine = next(iter(record.engines.values()))
    return GridRow(arm, prompt, generated, speed, engine.eligible, engine.chosen)
