"""`twofour transform`: exact changes of basis, after which masks lose less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from twofour.commands import transform_learn
from twofour.commands.line import say

if TYPE_CHECKING:
    from maskgen.transform.file import Transform

app = typer.Typer(
    no_args_is_help=True, help="Change a model's basis, not its answers, so that masks lose less."
)

app.command("learn")(transform_learn.learn)

Model = Annotated[str, typer.Option(help="Alias, directory, GGUF file or Hugging Face id.")]


@app.callback()
def transform() -> None:
    """Change a model's basis, not its answers, so that masks lose less."""


@app.command("apply")
def apply(
    model: Model,
    transform: Annotated[Path, typer.Option(help="The transform file.")],
    out: Annotated[Path, typer.Option(help="The model directory to make.")],
    mask: Annotated[
        list[Path] | None,
        typer.Option(help="A mask of the model, carried over to OUT/masks (repeat)."),
    ] = None,
) -> None:
    """Write the transformed model, a base like any other, for every command and other tools."""
    from maskgen.format.mask import check_base
    from maskgen.format.mask_file import read_mask, write_mask
    from maskgen.models import resolve_model
    from maskgen.transform.absorb import apply_transform
    from maskgen.transform.carry import carry
    from maskgen.transform.file import read_transform

    loaded, masks = read_transform(transform), [(file, read_mask(file)) for file in mask or []]
    if len({file.name for file, _ in masks}) < len(masks):
        raise ValueError("two masks have the same file name; carry them over one at a time")
    for _, one in masks:  # before anything is written
        check_base(one, loaded.base_digest, f"the model of {transform}")
    console = Console()
    with console.status("writing weights"):
        digest = apply_transform(resolve_model(model), loaded, out)
    say(console, f"{out}: {model} with {transform} applied, base digest {digest}")
    for file, old in masks:
        carried = carry(old, loaded, out)
        (out / "masks").mkdir(exist_ok=True)
        write_mask(out / "masks" / file.name, carried.mask)
        line = f"{out / 'masks' / file.name}: keeps {100 * carried.kept:.1f} % of what {file} keeps"
        if carried.rotated:
            line += (
                f"; {len(carried.rotated)} layers were rotated, and keep their largest weights"
                " instead"
            )
        say(console, line)


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(help="A transform file.", metavar="FILE")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Show what a transform file holds, group by group."""
    from rich.table import Table

    from maskgen.transform.file import read_transform

    loaded = read_transform(file)
    facts, rows = _facts(loaded), _rows(loaded)
    if as_json:
        typer.echo(json.dumps({**facts, "groups": rows}))
        return
    console = Console()
    table = Table(title=str(file), caption="moved: share of the channels with another place")
    table.add_column("group", no_wrap=True)
    for heading in ("what", "blocks", "channels", "moved"):
        table.add_column(heading, justify="right")
    for row in rows:
        moved = "" if row["moved"] is None else f"{100 * row['moved']:.1f} %"
        what, blocks, channels = (str(row[name]) for name in ("what", "blocks", "channels"))
        table.add_row(row["group"], what, blocks, channels, moved)
    console.print(table)
    for name, value in facts.items():
        say(console, f"{name.replace('_', ' ')}: {'none' if value is None else value}")


def _facts(transform: Transform) -> dict[str, Any]:
    return {
        "architecture": transform.architecture,
        "method": transform.method,
        "seed": transform.seed,
        "transform_digest": transform.digest,
        "base_digest": transform.base_digest,
        "result_digest": transform.result_digest,
        "calibration_digest": transform.calibration_digest,
    }


def _rows(transform: Transform) -> list[dict[str, Any]]:
    rows = []
    for tensor, array in transform.tensors().items():
        group, _, what = tensor.rpartition(".")
        blocks, channels = array.shape[:2]
        moved = None
        if what == "permutation":
            moved = float((array != range(channels)).mean())
        row = {"group": group, "what": what, "blocks": blocks, "channels": channels, "moved": moved}
        rows.append(row)
    return rows
