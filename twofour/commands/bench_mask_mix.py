"""`twofour bench engine --masks`: many masks in one engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from benchmarks.engine.mix_plan import MixPlan


def mask_mix(
    command: str, sparse: Path | None, model: str | None, masks: list[str], plan: MixPlan
) -> Path:
    """Measure, and write docs/results/mask-mix.json after every row.

    The first of `masks` is the base, unless `sparse` is given; the others are measured beside the
    synthetic ones.

    Raises:
        ValueError: neither `sparse`, nor `model` and a mask; or the directory does not serve.
    """
    from benchmarks.common.machine import OtherCpu
    from benchmarks.common.result_file import write_result
    from benchmarks.engine.mix import Bench, crossovers, measured_rules

    with (
        tempfile.TemporaryDirectory(prefix="twofour-masks-") as folder,
        _engine(sparse, model, masks, Path(folder)) as (directory, real),
    ):
        with OtherCpu() as other:
            rules = measured_rules(directory, plan)
        rule = rules[len(rules) // 2]
        typer.echo(rule.why, err=True)
        facts = {
            "plan": asdict(plan),
            "rule": {
                "limit": round(rule.limit, 5),
                "why": rule.why,
                "limits": [round(found.limit, 5) for found in rules],
                "other_cpu_share": round(other.share, 3),
            },
        }
        bench = Bench(directory, plan, rule, Path(folder), lambda line: typer.echo(line, err=True))
        rows = []
        for row in bench.rows(real):
            rows.append(row)
            path = write_result(
                "mask-mix",
                command,
                rows,
                other_cpu_share=max(row["other_cpu_share"] for row in rows),
                crossovers=crossovers(rows),
                **facts,
            )
    return path


@contextmanager
def _engine(
    sparse: Path | None, model: str | None, masks: list[str], folder: Path
) -> Iterator[tuple[Path, dict[str, Path]]]:
    """The engine directory of the base mask, and the further masks by name."""
    from twofour.commands.build import _named, build

    if sparse is None:
        if model is None or not masks:
            raise ValueError("--masks: give --sparse, or --model and --mask for the base")
        sparse = folder / "engine"
        build(model=model, out=sparse, mask=masks[:1])
        masks = masks[1:]
    real = dict(_named(spec) for spec in masks)
    if missing := [file for file in real.values() if not file.is_file()]:
        raise ValueError(f"--mask: {missing[0]} does not exist")
    yield sparse, {name: file.resolve() for name, file in real.items()}
