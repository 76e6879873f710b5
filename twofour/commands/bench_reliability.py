"""`twofour bench reliability`: the server under overload, disconnects, signals and damage."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.bench_options import JsonLine, Masks, finish, say
from twofour.commands.option_values import named_masks

_Option = typer.Option


def reliability(
    model: Annotated[str, _Option(help="The model to build an engine directory from.")],
    mask: Masks = None,
    load: Annotated[
        list[Path] | None, _Option(help="A further mask, loaded while the server runs (twice).")
    ] = None,
    tokens: Annotated[
        int, _Option(help="Tokens of an answer that takes some seconds.", min=16)
    ] = 192,
    json_: JsonLine = False,
) -> None:
    """Try every fault (docs/results/reliability.json); exit code 1 if anything is lost."""
    from benchmarks.common.engine_directories import build_engine
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.reliability.page import reliability_page
    from benchmarks.reliability.row import KEY
    from benchmarks.reliability.run import try_faults
    from benchmarks.reliability.site import Site
    from engines.directory.manifest import read_manifest

    masks = named_masks(mask or [])
    if len(masks) < 2 or len(load or []) < 2:
        raise ValueError("give --mask and --load twice each: masks are mixed, and take turns")
    with tempfile.TemporaryDirectory(prefix="twofour-reliability-") as name:
        folder = Path(name)
        site = Site(
            directory=build_engine(model, masks, folder / "engine"),
            model=read_manifest(folder / "engine").model,
            masks=tuple(masks),
            loadable=tuple(load or ()),
            parents=tuple(masks.values()),
            folder=folder,
            long_tokens=tokens,
        )
        spec = TableSpec("reliability", KEY, reliability_page, lambda rows: {"model": site.model})
        table = Table(spec, Earlier.DROP)
        for row in try_faults(site, say):
            table.put([row])
            say(
                f"  {row['fault']}: sent {row['sent']}, answered {row['answered']}, refused"
                f" {row['refused']}, left {row['left']}, lost {row['lost']}, {row['seconds']} s"
            )
            for problem in row["problems"]:
                say(f"    {problem}")
    finish(table.path, json_)
    if any(row["lost"] or row["problems"] for row in table.rows()):
        raise typer.Exit(1)
