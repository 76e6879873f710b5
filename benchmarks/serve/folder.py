"""The folder of one comparison: raw samples, `serve.json` with its page, and `report.html`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.result_file import (
    RESULTS,
    ResultData,
    read_result,
    this_command,
    write_page,
    write_result,
)
from benchmarks.serve.arms import Arm
from benchmarks.serve.charts import load_chart, standalone
from benchmarks.serve.compare import ServeComparison
from benchmarks.serve.html_report import html_report
from benchmarks.serve.page import serve_page
from benchmarks.serve.plan import LoadPlan
from engines.directory.manifest import MANIFEST_FILE
from loadtests.blocks import Block, LoadPoint
from loadtests.samples import RequestSample, read_samples
from loadtests.summary import Summary
from maskgen.format.atomic_file import write_text
from maskgen.format.json_file import read_json, write_json

RESULT = "serve"
REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class ServeFolder:
    """What a folder holds.

    Attributes:
        path: of the folder.
        result: content of `serve.json`.
        blocks: every single measurement.
    """

    path: Path
    result: ResultData
    blocks: list[Block]

    def samples(self) -> dict[str, list[RequestSample]]:
        """Raw samples of every block, by `samples_file`."""
        return {b.samples_file: read_samples(self.path / b.samples_file) for b in self.blocks}


def write_folder(comparison: ServeComparison, arms: Sequence[Arm], plan: LoadPlan) -> Path:
    """Write `serve.json` and its page into the comparison's folder; `write_report` draws the rest.

    Returns:
        The path of `serve.json`.
    """
    return write_result(
        RESULT,
        serve_page,
        [dataclasses.asdict(row) for row in comparison.rows],
        command=this_command(),
        folder=comparison.folder,
        **_fields(comparison, arms, plan),
    )


def publish(path: Path, name: str) -> Path:
    """Copy a `serve.json` to `docs/results/NAME.json`, with its page and a picture of the loads.

    Returns:
        The copy.
    """
    target = RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    result = read_result(path)
    lengths = {row["lengths"] for row in result["rows"]}
    if len(lengths) == 1:
        result["picture"] = f"{name}.svg"
        chart = load_chart(result["rows"], list(result["arms"]))
        write_text(target.with_suffix(".svg"), standalone(chart))
    write_json(target, result, indent=1)
    write_page(target, serve_page)
    return target


def write_report(folder: Path) -> Path:
    """Write `report.html` from what else is in the folder, and give its path.

    Raises:
        ValueError: no folder of a comparison, or samples are missing or damaged.
    """
    found = read_folder(folder)
    path = folder / REPORT
    write_text(path, html_report(found.result, found.blocks, found.samples()))
    return path


def read_folder(folder: Path) -> ServeFolder:
    """What `write_folder` wrote.

    Raises:
        ValueError: no such folder, or `serve.json` is not from a comparison.
    """
    path = folder / f"{RESULT}.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no results folder: it has no {path.name}")
    result = read_result(path)
    try:
        blocks = [_block(fields) for fields in result["blocks"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not of this version of twofour bench serve ({error}): measure again"
        ) from error
    return ServeFolder(folder, result, blocks)


def _fields(comparison: ServeComparison, arms: Sequence[Arm], plan: LoadPlan) -> dict[str, Any]:
    """Fields of the result file beside its rows."""
    return {
        "problems": comparison.problems,
        "doubts": comparison.doubts,
        "reference": comparison.reference,
        "other_cpu_share": comparison.other_cpu_share,
        "plan": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in dataclasses.asdict(plan).items()
        },
        "arms": {arm.name: {"masks": arm.mask_mix, "url": arm.url} for arm in arms},
        "servers": {
            # The folder of an engine says nothing on another machine.
            arm: {k: v for k, v in dataclasses.asdict(report).items() if k != "directory"}
            | {"sparse_share": report.sparse_share}
            for arm, report in comparison.servers.items()
        },
        "others": {arm: dataclasses.asdict(report) for arm, report in comparison.others.items()},
        "manifests": {arm.name: _manifest(arm.directory) for arm in arms if arm.directory},
        "calibration": dataclasses.asdict(comparison.calibration),
        "blocks": [dataclasses.asdict(block) for block in comparison.blocks],
    }


def _manifest(directory: Path) -> dict[str, Any]:
    """`engine.json` without the list of files, which its identity covers."""
    path = directory / MANIFEST_FILE
    fields = read_json(path, ValueError) if path.is_file() else {}
    return {key: value for key, value in fields.items() if key != "files"}


def _block(fields: dict[str, Any]) -> Block:
    point = LoadPoint(**fields["point"])
    return Block(**(fields | {"point": point, "summary": Summary(**fields["summary"])}))
