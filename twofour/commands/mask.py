"""`twofour mask`: make, inspect, compare and apply masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from maskgen.registry import method_names
from twofour.commands import mask_learn
from twofour.commands.line import say
from twofour.commands.option_values import Transform
from twofour.commands.progress import layer_bar

if TYPE_CHECKING:
    from maskgen.format.mask import Mask

app = typer.Typer(no_args_is_help=True, help="Make, inspect, compare and apply masks.")
app.command("learn")(mask_learn.learn)

MaskFile = Annotated[Path, typer.Argument(help="A mask file.", metavar="FILE")]
Parent = Annotated[
    Path | None,
    typer.Option(help="File of the parent mask [default: found by digest in the same folder]."),
]
Plot = Annotated[Path | None, typer.Option(help="Also draw a picture (.png, .svg, .pdf).")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of a table.")
]


@app.command("prune")
def prune(
    model: Annotated[str, typer.Option(help="Alias, directory, GGUF file or Hugging Face id.")],
    out: Annotated[Path, typer.Option(help="The mask file to write.")],
    method: Annotated[
        str,
        typer.Option(help=f"One of {', '.join(method_names('prune'))}."),
    ] = "wanda",
    transform: Transform = None,
    data: Annotated[
        str | None,
        typer.Option(help="Calibration text: a named set, file, folder, hub:NAME, or self."),
    ] = None,
    domain: Annotated[str, typer.Option(help="Label: what kind of text this is for.")] = "general",
    windows: Annotated[int, typer.Option(help="Calibration windows.", min=1)] = 64,
    length: Annotated[int, typer.Option(help="Tokens in a window.", min=2)] = 1024,
    seed: Annotated[int, typer.Option(help="Which windows are drawn.", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="bf16, fp32, or auto: what is fast here.")] = "auto",
    include: Annotated[
        list[str] | None, typer.Option(help="Mask only linears that match this glob (repeat).")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Keep linears that match this glob dense (repeat).")
    ] = None,
    dense_first: Annotated[int, typer.Option(help="First decoder layers left dense.", min=0)] = 0,
    dense_last: Annotated[int, typer.Option(help="Last decoder layers left dense.", min=0)] = 0,
    pattern: Annotated[
        str, typer.Option(help="N:M, weights that are kept of every M, such as 4:8 or 16:32.")
    ] = "2:4",
    expert_rows: Annotated[
        int,
        typer.Option(
            help="Tokens that must choose an expert; rarer ones are judged on all of their layer.",
            min=0,
        ),
    ] = 256,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="New model directory, for methods that change weights."),
    ] = None,
    parent: Annotated[
        Path | None, typer.Option(help="Store only the difference to this mask file.")
    ] = None,
) -> None:
    """Compute a mask in one shot."""
    from maskgen.format.coverage import coverage, dense_lines
    from maskgen.format.digests import base_digest
    from maskgen.format.mask import check_base, check_pattern
    from maskgen.format.mask_file import check_mask_output, read_mask, write_mask
    from maskgen.format.pattern import Pattern
    from maskgen.models import resolve_model
    from maskgen.prune import PruneSettings
    from maskgen.prune import prune as run
    from maskgen.registry import load_method
    from maskgen.selection import LayerChoice
    from maskgen.texts.self_text import calibration_texts

    check_mask_output(out)
    if load_method(method, "prune").uses_calibration and data is None:
        raise ValueError(f"{method} needs calibration text: give --data")
    settings = PruneSettings(
        method=method,
        domain=domain,
        windows=windows,
        length=length,
        seed=seed,
        dtype=dtype,
        layers=LayerChoice(include or (), exclude or (), dense_first, dense_last),
        checkpoint=checkpoint,
        pattern=Pattern.parse(pattern),
        expert_rows=expert_rows,
    )
    console = Console()
    directory = resolve_model(model, transform)
    base = None if parent is None else read_mask(parent)
    if base is not None and checkpoint is None:
        check_base(base, base_digest(directory), model)  # before minutes of work, not after
        check_pattern(base, settings.pattern, str(parent))
    texts = None
    if data is not None:
        with console.status(f"reading {data}"):
            texts = calibration_texts(
                data, directory, tokens=windows * length, seed=seed, dtype=dtype
            )
    with layer_bar(f"{method} on {model}") as report:
        result = run(directory, texts, settings, report)
    write_mask(out, result.mask, parent=base)
    for line in (
        *dense_lines(result.dense, result.mask.decoder_weights or 0),
        *result.rare.lines(),
    ):
        say(console, line)
    bits = out.stat().st_size * 8 / result.mask.weights
    say(
        console,
        f"{out}: {settings.pattern} {method} mask of {len(result.mask.codes)} layers, "
        f"{bits:.3f} bits per weight, from {result.tokens:,} tokens in {result.seconds:.1f} s",
    )
    say(console, f"{out} {coverage(result.mask)}")
    if checkpoint is not None:
        say(console, f"{checkpoint}: the model with changed weights, which the mask belongs to")


@app.command("inspect")
def inspect(
    file: MaskFile, parent: Parent = None, plot: Plot = None, as_json: JsonOption = False
) -> None:
    """Show what a mask file holds, layer by layer, with its density checked."""
    from rich.table import Table

    from maskgen.compare import summarise_layers
    from maskgen.format.coverage import coverage
    from maskgen.format.mask_file import read_mask
    from maskgen.format.placements import all_placements, placement_text

    mask = read_mask(file, parent)
    rows = summarise_layers(mask)
    facts = {
        **_facts(mask),
        "layers": len(rows),
        "weights": mask.weights,
        "bits_per_weight": file.stat().st_size * 8 / mask.weights,
        "density": sum(r.density * r.shape[0] * r.shape[1] for r in rows) / mask.weights,
        "decoder_weights": mask.decoder_weights,
    }
    if plot is not None:
        from maskgen.plots import plot_placements

        plot_placements(plot, mask.pattern, rows, f"{mask.method} for {mask.domain}")
    if as_json:
        layers = [
            {
                "name": r.name,
                "shape": r.shape,
                "density": r.density,
                "places": r.places,
                "placements": r.placements,
            }
            for r in rows
        ]
        typer.echo(json.dumps({**facts, "per_layer": layers}))
        return
    console = Console()
    if rows[0].placements:
        what = "placements"
        names = [placement_text(placement) for placement in all_placements(mask.pattern)]
    elif mask.pattern.m <= 8:
        what = "places in a group"
        names = [str(place) for place in range(1, mask.pattern.m + 1)]
    else:  # no terminal is as wide as all of them
        what = "the place in a group that is kept least, and most"
        names = ["least", "most"]
    table = Table(title=str(file), caption=f"kept: weights, {what}: groups, in %")
    table.add_column("layer", no_wrap=True)
    for heading in ("weight", "kept", *names):
        table.add_column(heading, justify="right")
    for row in rows:
        shown = row.placements or row.places
        if names == ["least", "most"]:
            shown = (min(shown), max(shown))
        shares = [f"{100 * share:.1f}" for share in (row.density, *shown)]
        table.add_row(_short(row.name), f"{row.shape[0]}x{row.shape[1]}", *shares)
    console.print(table)
    _print_facts(console, facts)
    say(console, f"{file} {coverage(mask)}")


@app.command("diff")
def diff(
    file: MaskFile,
    other: Annotated[Path, typer.Argument(help="The mask to compare with.", metavar="OTHER")],
    parent: Parent = None,
    plot: Plot = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a mask differs from another one of the same model.

    `entropy` is the bits per weight that the mask carries given the other; `stored` is what the
    difference takes on disk when the other is its parent.
    """
    from rich.table import Table

    from maskgen.compare import compare
    from maskgen.format.mask_file import read_mask

    mask, against = read_mask(file, parent), read_mask(other, parent)
    rows, total = compare(mask, against)
    stored = _stored_bits(mask, against) / mask.weights
    if plot is not None:
        from maskgen.plots import plot_difference

        plot_difference(plot, rows, f"{file.name} beside {other.name}")
    if as_json:
        layers = [_difference_json(row) for row in rows]
        typer.echo(
            json.dumps(
                {**_difference_json(total), "stored_bits_per_weight": stored, "per_layer": layers}
            )
        )
        return
    table = Table(title=f"{file} beside {other}", caption="entropy in bits per weight")
    table.add_column("layer", no_wrap=True)
    for heading in ("groups", "changed", "share", "agreement", "entropy"):
        table.add_column(heading, justify="right")
    for row in (*rows, total):
        if row is total:
            table.add_section()
        table.add_row(
            _short(row.name),
            f"{row.groups:,}",
            f"{row.changed:,}",
            f"{100 * row.changed_share:.2f} %",
            f"{100 * row.agreement:.1f} %",
            f"{row.bits_per_weight:.4f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"stored as a difference: {stored:.4f} bits per weight "
        f"(entropy {total.bits_per_weight:.4f})",
        highlight=False,
        soft_wrap=True,
    )


@app.command("graft")
def graft(
    onto: Annotated[Path, typer.Option(help="Mask that is changed, such as a domain's one-shot.")],
    learned: Annotated[Path, typer.Option(help="Mask that was learned on other text.")],
    prior: Annotated[Path, typer.Option(help="The mask that it was learned from.")],
    out: Annotated[Path, typer.Option(help="The mask file to write.")],
) -> None:
    """Carry over to a mask what learning changed in another one."""
    from maskgen.compare import compare
    from maskgen.format.mask_file import read_mask, write_mask
    from maskgen.graft import graft as carry_over

    start = read_mask(onto)
    grafted = carry_over(start, read_mask(learned), read_mask(prior))
    write_mask(out, grafted)
    changed = compare(grafted, start)[1].changed
    Console().print(f"{out}: {onto} with {changed:,} groups changed", soft_wrap=True)


@app.command("apply")
def apply(
    model: Annotated[str, typer.Option(help="Alias, directory, GGUF file or Hugging Face id.")],
    mask: Annotated[Path, typer.Option(help="The mask file.")],
    out: Annotated[Path, typer.Option(help="The model directory to make.")],
    transform: Transform = None,
    parent: Parent = None,
) -> None:
    """Write a model directory in which the dropped weights are zero, for other tools."""
    from maskgen.apply import apply_mask, with_decoder_weights
    from maskgen.format.coverage import coverage
    from maskgen.format.mask_file import read_mask
    from maskgen.models import resolve_model

    loaded = read_mask(mask, parent)
    directory = resolve_model(model, transform)
    console = Console()
    with console.status("writing weights"):
        digest = apply_mask(directory, loaded, out)
    say(console, f"{out}: {model} with {mask} applied, base digest {digest}")
    say(console, f"{mask} {coverage(with_decoder_weights(loaded, directory))}")


def _facts(mask: Mask) -> dict[str, Any]:
    return {
        "pattern": str(mask.pattern),
        "method": mask.method,
        "domain": mask.domain,
        "seed": mask.seed,
        "mask_digest": mask.digest,
        "base_digest": mask.base_digest,
        "calibration_digest": mask.calibration_digest,
        "parent_digest": mask.parent_digest,
    }


def _print_facts(console: Console, facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        shown = f"{value:.4f}" if isinstance(value, float) else "none" if value is None else value
        console.print(f"{name.replace('_', ' ')}: {shown}", highlight=False, soft_wrap=True)


def _short(name: str) -> str:
    """`model.layers.3.mlp.up_proj` as `3 mlp.up_proj`."""
    from maskgen.format.coverage import decoder_position

    place = decoder_position(name)
    return name if place is None else f"{place[1]} {place[2]}"


def _difference_json(row: Any) -> dict[str, Any]:
    return {
        "name": row.name,
        "groups": row.groups,
        "changed": row.changed,
        "changed_share": row.changed_share,
        "agreement": row.agreement,
        "entropy_bits_per_weight": row.bits_per_weight,
    }


def _stored_bits(mask: Mask, other: Mask) -> int:
    from maskgen.format.mask_file import difference_tensors

    return 8 * sum(tensor.nbytes for tensor in difference_tensors(mask, other).values())
